"""The engine on onnxruntime: state in row-first buffers, two in ping-pong, bound by address; several steps in a run.

A run reads the state from one buffer and writes the next state into the other, so that a run that fails has changed
nothing, and nothing is copied when it succeeds: the two change places. Each number of steps has a graph of its own.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from elman_bundle import Bundle
from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.engine.checking import check_graph
from elman_server.engine.encoder import Encoder
from elman_server.engine.graphs import Graph, Storage
from elman_server.engine.interface import FREE, NOTHING, Arrays, Chunk, Encoded, Results, Wanted
from elman_server.engine.providers import Opener, Provider
from elman_server.engine.threads import side_by_side
from elman_server.engine.unrolling import (
    CHECKS,
    FILTERS,
    LOG_PROBABILITIES,
    LOGITS,
    TARGETS,
    TEMPERATURES,
    TOKENS,
    UNIFORMS,
    read_step_graph,
    states_name,
    steps_name,
    unroll,
)
from elman_server.engine.weights import Weights
from elman_server.errors import ModelLoadError

# Few: each has a graph of its own with threads of its own, which sleep until it is run again.
_STEP_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_MOST_FILTERED_STEPS = 8  # onnxruntime takes seconds to open longer ones, with all that keeps rows to top-k and top-p
# Runs that tell more than tokens have fewer graphs, opened when they are needed first, while others wait for that; and
# what they tell takes memory for every step.
_TELLING_STEP_COUNTS = (1, 2, 4, 8)
_MOST_TOLD_BYTES = 64 * 1024 * 1024
_LIKELY = (Wanted(logits=True), Wanted(log_probabilities=True))
# So many of the most probable tokens hold the top-p share of nearly every distribution. Where they do not, the run is
# repeated with more.
_CANDIDATES = 128
_TRIALS = 5
_STEPS_OF_A_TRIAL, _RUNS_OF_A_TRIAL, _TRIALS_OF_LANES = 8, 4, 12
# Threads with rows of their own have to be so much faster: each reads all weights, and suffers more where caches are
# shared with who knows whom.
_HANDICAP = 1.07
_DISTURBING_BYTES = 2**21
_LEAST_SECONDS = 0.001  # of a trial's run: beside shorter ones the interpreter weighs most, and it runs one thread


class OnnxEngine:
    """Runs a bundle's steps; implements `Engine`.

    Args:
        bundle: the model.
        capacity: the number of rows.
        opener: opens sessions where the model is to run.
        chunk_seconds: about how long one run may take. It bounds the number of steps in a run.

    Raises:
        ModelLoadError: the graph is rejected, or is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, *, capacity: int, opener: Opener, chunk_seconds: float) -> None:
        self._bundle = bundle
        self._opener = opener
        self._chunk_seconds = chunk_seconds
        opened = opener.open(bundle.graph_path, bundle.graph_path)
        check_graph(bundle, opened.session)
        self._provider, self._cores = opened.provider, opened.cores
        self._step = read_step_graph(bundle)
        steps = unroll(self._step, 1) if opened.provider is Provider.CPU else None
        self._weights = Weights(bundle.graph_path, self._step.model, steps)
        outputs = bundle.spec.step.outputs
        self._outputs = [output.name for output in outputs]
        self._labels = [output.name for output in outputs if output.HasField("label_logits")]
        self._storage = Storage(opened.provider, capacity, bundle.spec)
        self._encoder = Encoder(bundle, opener) if bundle.encoder_path is not None else None
        # Which of the two buffers holds a row's state now; a run writes into the other, `commit` exchanges them.
        self._phases = np.zeros(capacity, np.intp)
        self._initial = _initial_values(bundle)
        self._threads = opener.threads if opened.provider is Provider.CPU else 1
        self._lane_counts: dict[int, int] = {}  # by the power of two that the number of rows does not exceed
        self._graphs: dict[tuple[int, bool, Wanted], Graph] = {}
        self._opening = threading.Lock()
        self._step_counts = [_STEP_COUNTS[0]]

    @property
    def capacity(self) -> int:
        return self._storage.capacity

    @property
    def provider(self) -> str:
        return self._provider.value

    def step_counts_for(self, filtered: bool, wanted: Wanted) -> Sequence[int]:
        if not filtered and wanted == NOTHING:
            return self._step_counts
        most = min(_MOST_FILTERED_STEPS if filtered else self._step_counts[-1], self._most_told_steps(wanted))
        known = self._step_counts if wanted == NOTHING else _TELLING_STEP_COUNTS
        return [count for count in known if count <= most and count <= self._step_counts[-1]] or [1]

    def _most_told_steps(self, wanted: Wanted) -> int:
        """How many steps' states and outputs the memory holds that a graph may take for them."""
        spec = self._step.spec
        told: list[v1.StateSpec | v1.OutputSpec] = [
            *(spec.states if wanted.states else ()),
            *(spec.outputs if wanted.outputs else ()),
        ]
        sizes = [math.prod(tensor.shape) * element_type(tensor.data_type).dtype.itemsize for tensor in told]
        return _MOST_TOLD_BYTES // max(1, sum(sizes) * self.capacity)

    @property
    def divided_at(self) -> str:
        """At which numbers of rows each thread runs some by itself, for people."""
        ranges: list[tuple[int, int]] = []
        for bucket in sorted(bucket for bucket, count in self._lane_counts.items() if count > 1):
            first, last = 2 ** (bucket - 1) + 1, min(2**bucket, self.capacity)
            if ranges and ranges[-1][1] == first - 1:
                first = ranges.pop()[0]
            ranges.append((first, last))
        return ", ".join(f"{first} to {last} rows" for first, last in ranges) or "never"

    def encode(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        assert self._encoder is not None
        return self._encoder.encode(sources)

    def insert(self, row: int, state: Arrays | None = None, encoded: Encoded | None = None) -> None:
        # Else it would go on with what the row's last sequence has left there.
        assert (encoded is not None) == (self._encoder is not None)
        values: Arrays = self._initial
        if state is not None:
            values = state
        elif encoded is not None:
            values = {**self._initial, **encoded.state}
        if row:  # Where its neighbour's is, with whom it will be run.
            self._phases[row] = self._phases[row - 1]
        for kept in self._storage.states:
            kept.buffers[self._phases[row]].write(row, np.asarray(values[kept.input_name])[None])
        if encoded is not None:
            self._storage.constants.write(row, encoded.constants)

    def move(self, source: int, destination: int) -> None:
        self._phases[destination] = self._phases[source]
        for kept in self._storage.states:
            kept.buffers[self._phases[source]].copy_row(source, destination)
        self._storage.constants.move(source, destination)

    def rearrange(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        phase = self._phase_of(range(min(*rows, *sources), max(*rows, *sources) + 1))
        for kept in self._storage.states:
            kept.buffers[phase].copy_rows(sources, rows)
        self._storage.constants.rearrange(rows, sources)

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        phase = self._phases[row]
        return {kept.input_name: kept.buffers[phase].read(row, 1)[0].copy() for kept in self._storage.states}

    def lanes(self, count: int) -> list[range]:
        lanes = min(self._lane_counts.get(_bucket(count), 1), count)
        return [range(count * lane // lanes, count * (lane + 1) // lanes) for lane in range(lanes)]

    def run(self, rows: range, chunk: Chunk, *, lane: int | None = None) -> Results:
        if not (chunk.filtered and self._step.generates):
            graph = self._graph(len(chunk), filtered=False, wanted=chunk.wanted)
            return self._run(graph, rows, self._feeds(chunk), chunk.wanted, lane=lane)
        graph = self._graph(len(chunk), filtered=True, wanted=chunk.wanted)
        size = self._step.vocabulary_size
        limited = chunk.top_k[chunk.top_k < size]
        candidates = int(limited.max(initial=_CANDIDATES if (chunk.top_p < 1).any() or chunk.min_p.any() else 1))
        while True:
            candidates = min(candidates, size)
            feeds = {
                **self._feeds(chunk),
                FILTERS.top_k: chunk.top_k[:, None],
                FILTERS.top_p: chunk.top_p[:, None],
                FILTERS.min_p: chunk.min_p[:, None],
                FILTERS.candidates: np.array([candidates]),
            }
            results = self._run(graph, rows, feeds, chunk.wanted, lane=lane)
            if candidates == size or not np.isposinf(graph.read(CHECKS, rows)).any():
                return results
            candidates *= 8

    def _feeds(self, chunk: Chunk) -> dict[str, NDArray[Any]]:
        feeds = dict(chunk.inputs)
        if self._step.generates:
            feeds[UNIFORMS] = chunk.uniforms
            feeds[TEMPERATURES] = chunk.temperatures[:, None]
            if chunk.wanted.log_probabilities:
                chosen = np.full(chunk.uniforms.shape, FREE)
                feeds[TARGETS] = chosen if chunk.targets is None else chunk.targets
        return feeds

    def _run(self, graph: Graph, rows: range, feeds: Arrays, wanted: Wanted, *, lane: int | None = None) -> Results:
        with self._cores.settled(lane or 0):
            graph.run(rows, feeds, self._phase_of(rows), alone=lane is not None)
        shown = self._outputs if wanted.outputs else self._labels
        outputs = {name: graph.read(steps_name(name), rows) for name in shown}
        kept = self._storage.states if wanted.states else []
        states = {state.input_name: graph.read(states_name(state.input_name), rows) for state in kept}
        if not self._step.generates:
            nothing = np.empty((len(rows), 0), np.int64)
            return Results(outputs, nothing, nothing.astype(np.bool_), states=states)
        return Results(
            outputs,
            graph.read(TOKENS, rows),
            np.isnan(graph.read(CHECKS, rows)),
            logits=graph.read(LOGITS, rows) if wanted.logits else None,
            log_probabilities=graph.read(LOG_PROBABILITIES, rows) if wanted.log_probabilities else None,
            states=states,
        )

    def _phase_of(self, rows: range) -> int:
        """Which buffer holds the state of all these rows. The state of those who have it in the other one than the
        first is copied, and what was kept aside for them is lost."""
        phases = self._phases[rows.start : rows.stop]
        phase = int(phases[0])
        if (phases == phase).all():
            return phase
        edges = np.flatnonzero(np.diff(phases != phase, prepend=False, append=False)) + rows.start
        for start, stop in edges.reshape(-1, 2).tolist():
            for kept in self._storage.states:
                kept.buffers[phase].write(start, kept.buffers[1 - phase].read(start, stop - start))
        phases[:] = phase
        return phase

    def replay(self, row: int, inputs: Arrays) -> None:
        rows, phase = range(row, row + 1), self._phases[row]
        left = len(next(iter(inputs.values()), ()))
        done = 0
        if not left:
            for kept in self._storage.states:
                kept.buffers[1 - phase].write(row, kept.buffers[phase].read(row, 1))
        while left:
            count = max(count for count in self._step_counts if count <= left)
            part = {name: values[None, done : done + count] for name, values in inputs.items()}
            if done:  # Nobody needs any more what the row was before.
                self.commit(rows)
            self._read(rows, part, count)
            done, left = done + count, left - count

    def read_ahead(self, rows: range, inputs: Arrays) -> None:
        self._read(rows, inputs, next(iter(inputs.values())).shape[1])
        self.commit(rows)

    def _read(self, rows: range, inputs: Arrays, count: int) -> None:
        """Run forced steps; nobody asks what is chosen after them."""
        feeds = dict(inputs)
        if self._step.generates:
            feeds[UNIFORMS] = np.zeros((len(rows), count), np.float32)
            feeds[TEMPERATURES] = np.ones((len(rows), 1), np.float32)
        self._run(self._graph(count, filtered=False, wanted=NOTHING), rows, feeds, NOTHING)

    def commit(self, rows: range) -> None:
        self._phases[rows.start : rows.stop] ^= 1

    def warm_up(self) -> None:
        """Run every batch size that is likely, so that no caller pays for first-time work, and find out how to divide
        rows among threads and how many steps one run may take."""
        if self._encoder is not None:
            encoded = self.encode([self._encoder.example()])[0]
            for row in range(self.capacity):
                self.insert(row, encoded=encoded)
        seconds = min(self._time(1, 1) for _ in range(_TRIALS))
        if self._threads > 1:
            self._divide()
        step_seconds = {size: self._time(size, 1) for size in self._sizes()}
        self._warm_filters(1, self._sizes())
        for wanted in _LIKELY if self._step.generates else ():
            for size in self._sizes_by_division(self._sizes()):
                self._time(size, 1, wanted=wanted)
        for count in _STEP_COUNTS[1:] if self._step.spec.inputs else ():  # What reads nothing has one step.
            if count * seconds > self._chunk_seconds:
                break
            self._step_counts.append(count)
            # Larger batches will not run so many steps at once.
            sizes = [size for size in self._sizes() if count * step_seconds[size] < 2 * self._chunk_seconds]
            for size in sizes:
                self._time(size, count)
            self._warm_filters(count, sizes)
            seconds = min(seconds, min(self._time(1, count) for _ in range(_TRIALS)) / count)

    def _warm_filters(self, count: int, sizes: list[int]) -> None:
        """The same for rows that are kept to their most probable tokens: once for every way to divide rows."""
        if self._step.generates and count <= _MOST_FILTERED_STEPS:
            for size in self._sizes_by_division(sizes):
                self._time(size, count, filtered=True)

    def _sizes_by_division(self, sizes: list[int]) -> list[int]:
        """One of the batch sizes for every way to divide rows."""
        return list({len(self.lanes(size)): size for size in sizes}.values())

    def _divide(self) -> None:
        """Find out at which batch sizes each thread runs some of the rows by itself; not on an idle machine, but beside
        what takes a core now and then, as whoever talks to clients does."""
        over = threading.Event()
        neighbour = threading.Thread(target=_disturb, args=(over,), daemon=True)
        neighbour.start()
        for size in self._sizes():
            if size < self._threads:
                continue
            bucket, step_seconds = _bucket(size), self._time(size, 1)
            fitting = [count for count in _STEP_COUNTS if count * step_seconds <= self._chunk_seconds]
            count = min(_STEPS_OF_A_TRIAL, max(fitting, default=1))
            if count * step_seconds < _LEAST_SECONDS:
                continue
            # Where it begins to be faster it is measured twice: one bad moment would divide rows that are better
            # off together.
            trials = 1 if self._lane_counts.get(bucket - 1, 1) > 1 else 2
            beside = all(self._is_faster_beside(size, count) for _ in range(trials))
            self._lane_counts[bucket] = self._threads if beside else 1
        over.set()
        neighbour.join()

    def _is_faster_beside(self, size: int, count: int) -> bool:
        """Whether so many steps of so many rows are faster where each thread has rows of its own."""
        seconds: dict[int, list[float]] = {1: [], self._threads: []}
        for _ in range(_TRIALS_OF_LANES):  # In turns: what else the machine does is then the same for both.
            for lanes, measured in seconds.items():
                self._lane_counts[_bucket(size)] = lanes
                measured.append(self._time(size, count, runs=_RUNS_OF_A_TRIAL))
        together, beside = (float(np.median(measured)) for measured in seconds.values())
        return _HANDICAP * beside < together

    def _sizes(self) -> list[int]:
        """The batch sizes to try: powers of two, and the largest."""
        powers = [2**power for power in range((self.capacity - 1).bit_length())]
        return [*powers, self.capacity]

    def _time(self, size: int, count: int, *, runs: int = 2, filtered: bool = False, wanted: Wanted = NOTHING) -> float:
        """Run `count` steps of so many rows, twice at least: from both halves of the ping-pong; the seconds of a run,
        but the first, which may have first-time work to do."""
        inputs = {
            given.name: np.zeros((size, count, *given.shape), element_type(given.data_type).dtype)
            for given in self._step.spec.inputs
        }
        ones = np.ones(size, np.float32)
        full = np.full(size, 1 if filtered else self._step.vocabulary_size)
        nothing = np.zeros(size, np.float32)
        chunk = Chunk(inputs, np.zeros((size, count), np.float32), ones, full, ones, nothing, filtered, wanted)
        lanes, seconds = self.lanes(size), list[float]()

        def run(lane: int, rows: range) -> None:
            part, started = chunk.part(rows), 0.0
            for number in range(runs):
                if number == 1:
                    started = time.perf_counter()
                self.run(rows, part, lane=lane if len(lanes) > 1 else None)
                self.commit(rows)
            seconds.append((time.perf_counter() - started) / (runs - 1))

        with ThreadPoolExecutor() as executor:
            side_by_side(executor, [partial(run, lane, rows) for lane, rows in enumerate(lanes)])
        return float(np.mean(seconds))  # None of them waits for the others.

    def _graph(self, count: int, *, filtered: bool, wanted: Wanted) -> Graph:
        key = (count, filtered, wanted)
        if key in self._graphs:
            return self._graphs[key]
        with self._opening:
            if key in self._graphs:  # By another thread, meanwhile.
                return self._graphs[key]
            model = unroll(self._step, count, filtered=filtered, wanted=wanted)
            # How many candidates there are is read on the host, which a captured graph would never do again; and it
            # would not see that constants of variable length have moved.
            captures = not filtered and not any(constant.variable_length for constant in self._step.spec.constants)
            self._graphs[key] = Graph(
                model,
                self._weights,
                self._bundle.graph_path,
                self._opener,
                self._storage,
                captures=captures,
            )
        return self._graphs[key]


def state_arrays(bundle: Bundle) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The dtype and shape of a row's state, by state input name."""
    states = bundle.spec.step.states
    return {state.input_name: (element_type(state.data_type).dtype, tuple(state.shape)) for state in states}


def _disturb(over: threading.Event) -> None:
    """Take a core for a tenth of the time, without the interpreter."""
    block = bytes(_DISTURBING_BYTES)
    while not over.is_set():
        started = time.perf_counter()
        zlib.crc32(block)
        over.wait(9 * (time.perf_counter() - started))


def _bucket(size: int) -> int:
    return (size - 1).bit_length()


def _initial_values(bundle: Bundle) -> dict[str, NDArray[Any]]:
    values: dict[str, NDArray[Any]] = {}
    for state in bundle.spec.step.states:
        dtype, shape = element_type(state.data_type).dtype, tuple(state.shape)
        if not state.HasField("file"):
            values[state.input_name] = np.full(shape, state.fill, dtype)
            continue
        path = bundle.path / state.file
        try:
            value = load_file(path)[state.input_name]
        except Exception as error:  # safetensors raises several kinds for a damaged file.
            raise ModelLoadError(f"{path}: has no initial value of {state.input_name}: {error}") from error
        if value.shape != shape or value.dtype != dtype:
            raise ModelLoadError(
                f"{path}: {state.input_name} is {value.dtype} {value.shape}, the manifest says "
                f"{np.dtype(dtype)} {shape}"
            )
        values[state.input_name] = value
    return values
