"""Trial steps of sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_server.engine.constants import padded_length
from elman_server.engine.foreign_graphs import check_logits
from elman_server.engine.interface import Arrays, Encoded
from elman_server.engine.rows import initial_values
from elman_server.engine.trials.graph import TrialGraph, TrialOutput
from elman_server.engine.trials.inputs import random_values
from elman_server.engine.trials.rows import ROWS, check_loud_neighbours, check_neighbours, check_rounding

STEPS = 4
_REFERENCE_ROWS = 4
_LONGEST_SOURCE = 16
_SECONDS = 1.0  # after which no further step is tried
_SEED = 7

Encode = Callable[[Sequence[NDArray[Any]]], Sequence[Encoded]]


@dataclass(frozen=True)
class Reference:
    """What the bundle's own graph gives for some rows from their start on.

    Attributes:
        states: by state input name, [rows, steps, *shape].
        outputs: by name, [rows, steps, *shape].
    """

    states: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


class StepTrial:
    """Checks a step's graph, and keeps what it gives.

    Args:
        bundle: the model.
        session: a session on the graph of its step, on the CPU.
        encode: encodes sources, if the model has an encoder.
        seconds: how long a run may take.
        most_rows: how many rows a reference may have.

    Raises:
        ModelLoadError: a row depends on something else than the row, or an output is not what the manifest says.
        EngineError: onnxruntime failed.

    Attributes:
        inputs: by name, [ROWS, steps, *shape].
        encoded: by row; empty without an encoder.
        step_count: the number of steps.
        references: what the graph gives for the first rows, by their number.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: onnxruntime.InferenceSession,
        encode: Encode | None,
        seconds: float,
        *,
        most_rows: int,
    ) -> None:
        spec = bundle.spec.step
        self._spec, self._longest = spec, bundle.spec.encoder.longest_source
        self._initial = initial_values(bundle)
        outputs = {output.name: TrialOutput(output.shape, output.row_axis) for output in spec.outputs}
        outputs |= {state.output_name: TrialOutput(state.shape, state.row_axis) for state in spec.states}
        axes = {given.name: given.row_axis for given in spec.inputs}
        axes |= {constant.name: constant.row_axis for constant in spec.constants}
        axes |= {state.input_name: state.row_axis for state in spec.states}
        graph = TrialGraph(bundle.graph_path, session, seconds, outputs, axes)
        random = np.random.default_rng(_SEED)
        self.step_count = STEPS if spec.inputs else 1
        batches = []
        for _ in range(2):
            inputs = {
                given.name: random_values(bundle, given, [ROWS, self.step_count, *given.shape], random)
                for given in spec.inputs
            }
            encoded = list(encode(random_sources(bundle, random))) if encode is not None else []
            batches.append((inputs, encoded))
        self.inputs, self.encoded = batches[0]
        self._check(graph, batches)
        counts = sorted({1, min(_REFERENCE_ROWS, most_rows)})
        self.references = {rows: self._reference(graph, rows) for rows in counts}

    def _reference(self, graph: TrialGraph, rows: int) -> Reference:
        """Run the first rows from their start on."""
        state = self._start(self.encoded[:rows], rows)
        states: list[Arrays] = []
        outputs: list[Arrays] = []
        for step in range(self.step_count):
            given = {name: values[:rows, step] for name, values in self.inputs.items()}
            found = graph.run({**given, **self._constants(self.encoded[:rows]), **state})
            state = self._next(found)
            states.append(state)
            outputs.append({output.name: found[output.name] for output in self._spec.outputs})
        return Reference(_stacked(states), _stacked(outputs))

    def _check(self, graph: TrialGraph, batches: Sequence[tuple[Arrays, Sequence[Encoded]]]) -> None:
        started = time.perf_counter()
        states = [self._start(encoded, ROWS) for _, encoded in batches]
        scores: list[Arrays] = []
        for step in range(self.step_count):
            feeds = [
                {**{name: values[:, step] for name, values in inputs.items()}, **self._constants(encoded), **state}
                for (inputs, encoded), state in zip(batches, states, strict=True)
            ]
            checked = step in (0, self.step_count - 1)  # Those between are there for states that have come further.
            found = check_neighbours(graph, *feeds) if checked else [graph.run(given) for given in feeds]
            scores += found
            states = [self._next(values) for values in found]
            if time.perf_counter() - started > _SECONDS:
                self.step_count = step + 1
                break
        check_loud_neighbours(graph, feeds[0], feeds[1])
        alone = _joined([graph.run(self._alone(feeds[0], row)) for row in range(ROWS)])
        padding = " or the padding of sources" if self.encoded else ""
        check_rounding(graph, alone, found[0], f"their number{padding}")
        check_logits(graph.path, self._spec.outputs, _joined(scores))

    def _alone(self, feeds: Arrays, row: int) -> Arrays:
        """The inputs of one row, with as much padding as its source has alone."""
        alone = {name: value[row : row + 1] for name, value in feeds.items()}
        return {**alone, **self._constants(self.encoded[row : row + 1])}

    def _start(self, encoded: Sequence[Encoded], rows: int) -> Arrays:
        values = {name: np.stack([value] * rows) for name, value in self._initial.items()}
        for name in encoded[0].state if encoded else ():
            values[name] = np.stack([row.state[name] for row in encoded])
        return values

    def _constants(self, encoded: Sequence[Encoded]) -> Arrays:
        values: dict[str, NDArray[Any]] = {}
        for constant in self._spec.constants if encoded else ():
            rows = [row.constants[constant.name] for row in encoded]
            values[constant.name] = _padded(rows, self._longest) if constant.variable_length else np.stack(rows)
        return values

    def _next(self, found: Arrays) -> Arrays:
        return {state.input_name: found[state.output_name] for state in self._spec.states}


def random_sources(bundle: Bundle, random: np.random.Generator) -> list[NDArray[Any]]:
    """ROWS sources, [positions, *shape] each. Their lengths are the same in every call; the first is the longest."""
    encoder = bundle.spec.encoder
    longest = min(encoder.longest_source, _LONGEST_SOURCE)
    lengths = np.linspace(longest, 1, ROWS).astype(int).tolist()
    return [random_values(bundle, encoder.input, [length, *encoder.input.shape], random) for length in lengths]


def _padded(values: Sequence[NDArray[Any]], longest: int) -> NDArray[Any]:
    """Values for each position of several sources; zeros follow those of the shorter ones."""
    length = padded_length(max(map(len, values)), longest)
    padded = np.zeros((len(values), length, *values[0].shape[1:]), values[0].dtype)
    for row, value in enumerate(values):
        padded[row, : len(value)] = value
    return padded


def _joined(results: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([found[name] for found in results]) for name in results[0]}


def _stacked(steps: Iterable[Arrays]) -> dict[str, NDArray[Any]]:
    listed = list(steps)
    return {name: np.stack([found[name] for found in listed], axis=1) for name in listed[0]}
