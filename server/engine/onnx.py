"""The engine on onnxruntime: state in row-first buffers, two in ping-pong, bound by address; several steps in a run.

A run reads the state from one buffer and writes the next state into the other, so that a run that fails has changed
nothing, and nothing is copied when it succeeds: the two change places. Each number of steps has a graph of its own;
bindings are kept per graph and number of rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import load_file

from bundle import Bundle
from elman import v1
from server.engine.errors import EngineError, ModelLoadError
from server.engine.interface import Arrays, Chunk, Results
from server.engine.memory import Buffer, CudaBuffer, HostBuffer
from server.engine.providers import Opener, Provider
from server.engine.unrolling import (
    CHECKS,
    DTYPES,
    FILTERS,
    TEMPERATURES,
    TOKENS,
    UNIFORMS,
    StepGraph,
    read_step_graph,
    steps_name,
    unroll,
)

_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
TensorSpec = v1.InputSpec | v1.ConstantSpec | v1.StateSpec | v1.OutputSpec

_MOST_STEPS = 64
# So many of the most probable tokens hold the top-p share of nearly every distribution. Where they do not, the run is
# repeated with more.
_CANDIDATES = 128


@dataclass(frozen=True)
class _State:
    """A state's two buffers, [capacity, *shape], by the phase of the ping-pong."""

    input_name: str
    output_name: str
    buffers: tuple[Buffer, Buffer]


class _Graph:
    """A graph of some steps: its session, its inputs and outputs beside constants and state, and its bindings by
    number of rows and phase."""

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: dict[str, Buffer], outputs: dict[str, Buffer]
    ) -> None:
        self.session = session
        self.inputs = inputs
        self.outputs = outputs
        self.bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}


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
        self._capacity = capacity
        self._chunk_seconds = chunk_seconds
        opened = opener.open(bundle.graph_path, bundle.graph_path)
        _check_graph(bundle, opened.session)
        self._provider = opened.provider
        self._step: StepGraph = read_step_graph(bundle)
        self._buffer: type[HostBuffer] | type[CudaBuffer] = (
            CudaBuffer if opened.provider is Provider.CUDA else HostBuffer
        )
        spec = bundle.spec.step
        self._inputs = {given.name: given for given in spec.inputs}
        self._labels = {output.name: output for output in spec.outputs if output.HasField("label_logits")}
        self._constants = {
            constant.name: self._allocate(constant.shape, constant.data_type) for constant in spec.constants
        }
        self._states = [
            _State(
                state.input_name,
                state.output_name,
                (self._allocate(state.shape, state.data_type), self._allocate(state.shape, state.data_type)),
            )
            for state in spec.states
        ]
        # Which of the two buffers holds the rows' state now; a run writes into the other, `commit` exchanges them.
        self._phase = 0
        self._initial = _initial_values(bundle)
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        self._step_counts = [1]
        self._graph(1, filtered=False)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def provider(self) -> str:
        return self._provider.value

    @property
    def step_counts(self) -> Sequence[int]:
        return self._step_counts

    def insert(self, row: int, state: Arrays | None = None, constants: Arrays | None = None) -> None:
        values = self._initial if state is None else state
        for kept in self._states:
            kept.buffers[self._phase].write(row, np.asarray(values[kept.input_name])[None])
        for name, buffer in self._constants.items():
            if constants is None or name not in constants:
                raise EngineError(f"the constant {name} is missing")
            buffer.write(row, np.asarray(constants[name])[None])

    def move(self, source: int, destination: int) -> None:
        for kept in self._states:
            kept.buffers[self._phase].copy_row(source, destination)
        for buffer in self._constants.values():
            buffer.copy_row(source, destination)

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        return {kept.input_name: kept.buffers[self._phase].read(row, 1)[0].copy() for kept in self._states}

    def run(self, rows: range, chunk: Chunk) -> Results:
        size = self._step.vocabulary_size
        if not (size and ((chunk.top_k < size).any() or (chunk.top_p < 1).any())):
            return self._run(self._graph(len(chunk), filtered=False), rows, self._feeds(chunk))
        graph = self._graph(len(chunk), filtered=True)
        limited = chunk.top_k[chunk.top_k < size]
        candidates = int(limited.max(initial=_CANDIDATES if (chunk.top_p < 1).any() else 1))
        while True:
            candidates = min(candidates, size)
            feeds = {
                **self._feeds(chunk),
                FILTERS.top_k: chunk.top_k[:, None],
                FILTERS.top_p: chunk.top_p[:, None],
                FILTERS.candidates: np.array([candidates]),
            }
            results = self._run(graph, rows, feeds)
            if candidates == size or not np.isposinf(graph.outputs[CHECKS].read(rows.start, len(rows))).any():
                return results
            candidates *= 8

    def _feeds(self, chunk: Chunk) -> dict[str, NDArray[Any]]:
        feeds = dict(chunk.inputs)
        if self._step.generates:
            feeds[UNIFORMS] = chunk.uniforms[:, :, None]
            feeds[TEMPERATURES] = chunk.temperatures[:, None]
        return feeds

    def _run(self, graph: _Graph, rows: range, feeds: Arrays) -> Results:
        for name, values in feeds.items():
            graph.inputs[name].write(0 if name == FILTERS.candidates else rows.start, values)
        try:
            graph.session.run_with_iobinding(self._bound(graph, rows))
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(str(error)) from error

        def read(name: str) -> NDArray[Any]:
            return graph.outputs[name].read(rows.start, len(rows))

        outputs = {name: read(steps_name(name)) for name in self._labels}
        if not self._step.generates:
            return Results(outputs, np.empty((len(rows), 0), np.int64), np.empty((len(rows), 0), np.bool_))
        return Results(outputs, read(TOKENS), np.isnan(read(CHECKS)))

    def replay(self, row: int, inputs: Arrays) -> None:
        left = len(next(iter(inputs.values())))
        done = 0
        while left:
            count = max(count for count in self._step_counts if count <= left)
            part = {name: values[None, done : done + count] for name, values in inputs.items()}
            if done:  # Nobody needs any more what the row was before.
                for kept in self._states:
                    now, following = kept.buffers[self._phase], kept.buffers[1 - self._phase]
                    now.write(row, following.read(row, 1))
            nothing = np.zeros((1, count, 1), np.float32)
            chosen = {UNIFORMS: nothing, TEMPERATURES: np.ones((1, 1), np.float32)} if self._step.generates else {}
            self._run(self._graph(count, filtered=False), range(row, row + 1), {**part, **chosen})
            done, left = done + count, left - count

    def commit(self) -> None:
        self._phase = 1 - self._phase

    def warm_up(self) -> None:
        """Run every batch size that is likely once, so that no caller pays for first-time work, and find out how many
        steps one run may take."""
        seconds = self._warm_up(1)
        while 2 * self._step_counts[-1] <= min(_MOST_STEPS, self._chunk_seconds / seconds):
            self._step_counts.append(2 * self._step_counts[-1])
            seconds = min(seconds, self._warm_up(self._step_counts[-1]) / self._step_counts[-1])

    def _warm_up(self, count: int) -> float:
        """Run `count` steps at every likely batch size; the seconds that they take with one row."""
        size, fastest = 1, float("inf")
        while True:
            rows = range(size)
            inputs = {
                name: np.zeros((size, count, *given.shape), DTYPES[given.data_type])
                for name, given in self._inputs.items()
            }
            width = self._step.vocabulary_size
            uniforms, temperatures = np.zeros((size, count), np.float32), np.ones(size, np.float32)
            chunk = Chunk(inputs, uniforms, temperatures, np.full(size, width), temperatures)
            for _ in range(4 if size == 1 else 2):  # Both halves of the ping-pong have bindings of their own.
                started = time.perf_counter()
                self.run(rows, chunk)
                if size == 1:
                    fastest = min(fastest, time.perf_counter() - started)
                self.commit()
            if size == self._capacity:
                return fastest
            size = min(2 * size, self._capacity)

    def _allocate(self, shape: Iterable[int], data_type: int) -> Buffer:
        return self._buffer((self._capacity, *shape), DTYPES[data_type])

    def _graph(self, count: int, *, filtered: bool) -> _Graph:
        key = (count, filtered)
        if key not in self._graphs:
            self._graphs[key] = self._open(count, filtered)
        return self._graphs[key]

    def _open(self, count: int, filtered: bool) -> _Graph:
        model = unroll(self._step, count, filtered=filtered)
        session = self._opener.open(model.SerializeToString(), self._bundle.graph_path).session
        own = {name for state in self._states for name in (state.input_name, state.output_name)}
        own |= self._constants.keys()

        def allocate(values: Iterable[onnx.ValueInfoProto]) -> dict[str, Buffer]:
            return {value.name: self._buffer_of(value) for value in values if value.name not in own}

        return _Graph(session, allocate(model.graph.input), allocate(model.graph.output))

    def _buffer_of(self, value: onnx.ValueInfoProto) -> Buffer:
        tensor = value.type.tensor_type
        shape = [size.dim_value if size.HasField("dim_value") else self._capacity for size in tensor.shape.dim]
        return self._buffer(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))

    def _bound(self, graph: _Graph, rows: range) -> onnxruntime.IOBinding:
        if rows.start != 0:  # Only a failed batch and a replay run rows from the middle; not worth keeping.
            return self._bind(graph, rows)
        key = (rows.stop, self._phase)
        if key not in graph.bindings:
            graph.bindings[key] = self._bind(graph, rows)
        return graph.bindings[key]

    def _bind(self, graph: _Graph, rows: range) -> onnxruntime.IOBinding:
        binding = graph.session.io_binding()

        def place(buffer: Buffer) -> tuple[str, int, np.dtype[Any], tuple[int, ...], int]:
            return buffer.device, 0, buffer.dtype, (len(rows), *buffer.shape[1:]), buffer.address(rows.start)

        for name, buffer in (*graph.inputs.items(), *self._constants.items()):
            if name == FILTERS.candidates:  # Has no rows.
                binding.bind_input(name, buffer.device, 0, buffer.dtype, buffer.shape, buffer.address(0))
            else:
                binding.bind_input(name, *place(buffer))
        for name, buffer in graph.outputs.items():
            binding.bind_output(name, *place(buffer))
        for state in self._states:
            binding.bind_input(state.input_name, *place(state.buffers[self._phase]))
            binding.bind_output(state.output_name, *place(state.buffers[1 - self._phase]))
        return binding


def _initial_values(bundle: Bundle) -> dict[str, NDArray[Any]]:
    values: dict[str, NDArray[Any]] = {}
    for state in bundle.spec.step.states:
        dtype, shape = DTYPES[state.data_type], tuple(state.shape)
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


def _check_graph(bundle: Bundle, session: onnxruntime.InferenceSession) -> None:
    """Compare what the graph has with what the manifest says it has."""
    step = bundle.spec.step
    named_in: dict[str, TensorSpec] = {
        **{tensor.name: tensor for tensor in step.inputs},
        **{tensor.name: tensor for tensor in step.constants},
        **{state.input_name: state for state in step.states},
    }
    named_out: dict[str, TensorSpec] = {
        **{tensor.name: tensor for tensor in step.outputs},
        **{state.output_name: state for state in step.states},
    }
    _check_side(bundle, "input", session.get_inputs(), named_in)
    _check_side(bundle, "output", session.get_outputs(), named_out)
    unlisted = {node.name for node in session.get_inputs()} - named_in.keys()
    if unlisted:
        raise ModelLoadError(
            f"{bundle.graph_path}: the graph needs the input {min(unlisted)!r}, which the manifest does not mention"
        )


def _check_side(bundle: Bundle, side: str, nodes: Iterable[onnxruntime.NodeArg], specs: dict[str, TensorSpec]) -> None:
    found = {node.name: node for node in nodes}
    for name, spec in specs.items():
        if name not in found:
            what = "state's next value" if isinstance(spec, v1.StateSpec) and side == "output" else side
            raise ModelLoadError(
                f"{bundle.graph_path}: the manifest names the {what} {name!r}, but the graph's {side}s are "
                f"{', '.join(sorted(found))}"
            )
        node = found[name]
        shape: list[Any] = list(spec.shape)
        shape.insert(spec.row_axis, "rows")
        if _ONNX_TYPES.get(node.type) is not DTYPES[spec.data_type]:
            raise ModelLoadError(
                f"{bundle.graph_path}: {side} {name!r} is {node.type}, the manifest says "
                f"{np.dtype(DTYPES[spec.data_type])}"
            )
        if not _shapes_agree(node.shape, shape):
            raise ModelLoadError(
                f"{bundle.graph_path}: {side} {name!r} has shape {node.shape}, the manifest says {shape}; "
                "the row axis must be open"
            )


def _shapes_agree(graph: list[Any] | None, manifest: list[Any]) -> bool:
    """A graph may leave a size open (a name or nothing), but the row axis it must."""
    if graph is None:
        return True
    return len(graph) == len(manifest) and all(
        not isinstance(ours, int) if theirs == "rows" else not isinstance(ours, int) or ours == theirs
        for ours, theirs in zip(graph, manifest, strict=True)
    )
