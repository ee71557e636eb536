"""The engine on onnxruntime: several steps in one run, on buffers that are bound by address.

Each number of steps has a graph of its own; all of them share the weights and the buffers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.engine.checking import check_graph
from elman_server.engine.encoder import Encoder
from elman_server.engine.graphs import Graph, StepGraphs
from elman_server.engine.interface import DEFAULT_OUTPUTS, FREE, Arrays, Chunk, Encoded, OutputSelection, Results
from elman_server.engine.partitions import RowPartitions
from elman_server.engine.policy import DEFAULT_ENGINE_POLICY, EnginePolicy
from elman_server.engine.providers import Opener, Provider
from elman_server.engine.rows import RowStates
from elman_server.engine.threads import Cores
from elman_server.engine.trials.limits import RunLimit, check_step_ends
from elman_server.engine.trials.step import StepTrial
from elman_server.engine.unrolling import (
    CHECKS,
    FILTERS,
    LOG_PROBABILITIES,
    LOGITS,
    TARGETS,
    TEMPERATURES,
    TOKENS,
    UNIFORMS,
    given_name,
    read_step_graph,
    states_name,
    steps_name,
    unroll,
)
from elman_server.engine.weights import Weights
from elman_server.returned_memory import return_free_memory


class OnnxEngine:
    """Runs a bundle's steps; implements `Engine`, which asks for most of its methods. `autotune` warms
    it up.

    Args:
        bundle: the model.
        capacity: the number of rows.
        opener: opens sessions where the model is to run.
        run_seconds: about how long one run may take. It bounds the number of steps of a run.
        policy: the thresholds.

    Raises:
        ModelLoadError: the graph is rejected, or is not what the manifest says.

    Attributes:
        policy: as given.
        run_seconds: as given.
        partitions: how rows are divided among threads.
        run_limit: ends runs while the model is loaded.
        thread_count: the number of threads of a run.
        spec: what the manifest says of the step.
        vocabulary_size: of the generated tokens; 0 if the model generates none.
        graphs: the step, unrolled.
        trial: what the bundle's own graph gives, until `settle_steps` has compared it; None if it runs on CUDA only.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        capacity: int,
        opener: Opener,
        run_seconds: float,
        policy: EnginePolicy = DEFAULT_ENGINE_POLICY,
    ) -> None:
        self.policy = policy
        self.run_seconds = run_seconds
        self._encoder = Encoder(bundle, opener, policy) if bundle.encoder_path is not None else None
        self._provider, self._cores, self.trial = self._try_step(bundle, opener, capacity)
        return_free_memory()  # So that the largest amount at any time is smaller: the next steps copy weights, too.
        on_cpu = self._provider is Provider.CPU
        self._step = read_step_graph(bundle, policy.trial_run_seconds, opener, on_cpu=on_cpu)
        return_free_memory()
        if on_cpu and _has_float16(bundle.spec.step):
            self._step = replace(self._step, separated=True)
        self.spec, self.vocabulary_size = self._step.spec, self._step.vocabulary_size
        steps = unroll(self._step, 1) if self._provider is Provider.CPU else None
        weights = Weights(bundle.graph_path, self._step.model, steps)
        outputs = bundle.spec.step.outputs
        self._outputs = [output.name for output in outputs]
        self._labels = [output.name for output in outputs if output.HasField("label_logits")]
        self._rows = RowStates(bundle, self._provider, capacity)
        self.thread_count = opener.threads if self._provider is Provider.CPU else 1
        self.partitions = RowPartitions(capacity)
        self.run_limit = RunLimit(bundle.graph_path)
        self.graphs = StepGraphs(bundle.graph_path, self._step, weights, opener, self._rows.storage, self.run_limit)
        self._step_counts = [policy.step_counts[0]]

    def _try_step(self, bundle: Bundle, opener: Opener, capacity: int) -> tuple[Provider, Cores, StepTrial | None]:
        """Check a step; returns where it runs, and what it gives. Its session, which has a copy of the weights, is
        closed again.

        Raises:
            ModelLoadError: the graph is rejected or is not what the manifest says, a run takes too long, or a row
                depends on something else than the row.
        """
        opened, seconds = opener.open(bundle.graph_path, bundle.graph_path), self.policy.trial_run_seconds
        check_graph(bundle, opened.session)
        check_step_ends(bundle, opened.session, seconds)
        on_cpu, trial = opener.open_on_cpu(opened, bundle.graph_path), None
        if on_cpu is not None:
            encode = None if self._encoder is None else self._encoder.encode
            trial = StepTrial(bundle, on_cpu, encode, seconds, most_rows=capacity)
        return opened.provider, opened.cores, trial

    @property
    def capacity(self) -> int:
        return self._rows.storage.capacity

    @property
    def provider(self) -> str:
        return self._provider.value

    @property
    def generates(self) -> bool:
        """Whether the model generates tokens."""
        return self._step.generates

    def step_counts_for(self, filtered: bool, selection: OutputSelection) -> Sequence[int]:
        if not filtered and selection == DEFAULT_OUTPUTS:
            return self._step_counts
        most = min(
            self._step_counts[-1],
            _output_step_limit(self.spec, selection, self.capacity, self.policy.output_bytes_limit),
        )
        if filtered:
            most = min(most, self.policy.filtered_step_limit)
        known = self._step_counts if selection == DEFAULT_OUTPUTS else self.policy.output_step_counts
        return [count for count in known if count <= most] or [1]

    def allow_steps(self, count: int) -> None:
        """Runs may take `count` steps, more than any so far."""
        self._step_counts.append(count)

    def encode(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        assert self._encoder is not None
        return self._encoder.encode(sources)

    def fill_with_example(self) -> None:
        """Give every row the constants of an example source, if the model has an encoder."""
        if self._encoder is not None:
            encoded = self.encode([self._encoder.example()])[0]
            for row in range(self.capacity):
                self.insert(row, encoded=encoded)

    def insert(self, row: int, state: Arrays | None = None, encoded: Encoded | None = None) -> None:
        # Otherwise the row would keep the constants of its last sequence.
        assert (encoded is not None) == (self._encoder is not None)
        self._rows.insert(row, state, encoded)

    def release(self, row: int) -> None:
        """Nothing to forget: `insert` writes everything."""

    def move(self, source: int, destination: int) -> None:
        self._rows.move(source, destination)

    def rearrange(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        self._rows.rearrange(rows, sources)

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        return self._rows.extract(row)

    def divide(self, count: int) -> list[range]:
        return self.partitions.ranges(count)

    def run(self, rows: range, chunk: Chunk, *, partition: int | None = None) -> Results:
        if not (chunk.filtered and self.generates):
            graph = self.graphs.get(len(chunk), filtered=False, selection=chunk.selection)
            return self._run(graph, rows, _feeds(chunk, self.generates), chunk.selection, partition=partition)
        graph = self.graphs.get(len(chunk), filtered=True, selection=chunk.selection)
        size = self.vocabulary_size
        limited = chunk.top_k[chunk.top_k < size]
        by_mass = (chunk.top_p < 1).any() or chunk.min_p.any()
        candidates = int(limited.max(initial=self.policy.filter_candidates if by_mass else 1))
        while True:
            candidates = min(candidates, size)
            feeds = {
                **_feeds(chunk, self.generates),
                FILTERS.top_k: chunk.top_k[:, None],
                FILTERS.top_p: chunk.top_p[:, None],
                FILTERS.min_p: chunk.min_p[:, None],
                FILTERS.candidates: np.array([candidates]),
            }
            results = self._run(graph, rows, feeds, chunk.selection, partition=partition)
            if candidates == size or not np.isposinf(graph.read(CHECKS, rows)).any():
                return results
            candidates *= 8

    def _run(
        self, graph: Graph, rows: range, feeds: Arrays, selection: OutputSelection, *, partition: int | None = None
    ) -> Results:
        with self._cores.pinned(partition or 0):
            graph.run(rows, feeds, self._rows.phase(rows), alone=partition is not None)
        shown = self._outputs if selection.outputs else self._labels
        outputs = {name: graph.read(steps_name(name), rows) for name in shown}
        kept = self._rows.storage.states if selection.states else []
        states = {state.name: graph.read(states_name(state.name), rows) for state in kept}
        if not self.generates:
            nothing = np.empty((len(rows), 0), np.int64)
            return Results(outputs, nothing, nothing.astype(np.bool_), states=states)
        return Results(
            outputs,
            graph.read(TOKENS, rows),
            np.isnan(graph.read(CHECKS, rows)),
            logits=graph.read(LOGITS, rows) if selection.logits else None,
            log_probabilities=graph.read(LOG_PROBABILITIES, rows) if selection.log_probabilities else None,
            states=states,
        )

    def replay(self, row: int, inputs: Arrays) -> None:
        rows = range(row, row + 1)
        left = len(next(iter(inputs.values()), ()))
        done = 0
        if not left:
            self._rows.undo_run(row)
        while left:
            count = max(count for count in self._step_counts if count <= left)
            part = {name: values[None, done : done + count] for name, values in inputs.items()}
            if done:  # The state before the first run is not needed any more.
                self.commit(rows)
            self._run_forced(rows, part, count)
            done, left = done + count, left - count

    def prefill(self, rows: range, inputs: Arrays) -> None:
        self._run_forced(rows, inputs, next(iter(inputs.values())).shape[1])
        self.commit(rows)

    def _run_forced(self, rows: range, inputs: Arrays, count: int) -> None:
        """Run forced steps whose choices are not used."""
        feeds = _given(inputs)
        if self.generates:
            feeds[UNIFORMS] = np.zeros((len(rows), count), np.float32)
            feeds[TEMPERATURES] = np.ones((len(rows), 1), np.float32)
        self._run(self.graphs.get(count, filtered=False, selection=DEFAULT_OUTPUTS), rows, feeds, DEFAULT_OUTPUTS)

    def commit(self, rows: range) -> None:
        self._rows.commit(rows)


def state_arrays(bundle: Bundle) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The dtype and shape of a row's state, by state input name."""
    states = bundle.spec.step.states
    return {state.input_name: (element_type(state.data_type).dtype, tuple(state.shape)) for state in states}


def _has_float16(spec: v1.StepSpec) -> bool:
    kinds = {state.data_type for state in spec.states} | {output.data_type for output in spec.outputs}
    return v1.DATA_TYPE_FLOAT16 in kinds


def _given(inputs: Arrays) -> dict[str, NDArray[Any]]:
    """The inputs of a step by their names in unrolled graphs."""
    return {given_name(name): values for name, values in inputs.items()}


def _feeds(chunk: Chunk, generates: bool) -> dict[str, NDArray[Any]]:
    """The inputs of a chunk that change from run to run, by name."""
    feeds = _given(chunk.inputs)
    if generates:
        feeds[UNIFORMS] = chunk.uniforms
        feeds[TEMPERATURES] = chunk.temperatures[:, None]
        if chunk.selection.log_probabilities:
            chosen = np.full(chunk.uniforms.shape, FREE)
            feeds[TARGETS] = chosen if chunk.targets is None else chunk.targets
    return feeds


def _output_step_limit(spec: v1.StepSpec, selection: OutputSelection, capacity: int, bytes_limit: int) -> int:
    """Returns how many steps' states and outputs of all rows fit into the memory that a graph may take for them."""
    selected: list[v1.StateSpec | v1.OutputSpec] = [
        *(spec.states if selection.states else ()),
        *(spec.outputs if selection.outputs else ()),
    ]
    sizes = [math.prod(tensor.shape) * element_type(tensor.data_type).dtype.itemsize for tensor in selected]
    return bytes_limit // max(1, sum(sizes) * capacity)
