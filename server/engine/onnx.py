"""The engine on onnxruntime: state in row-first buffers, two in ping-pong, bound by pointer.

A step reads the state from one buffer and writes the next state into the other, so that a step that fails has changed
nothing, and nothing is copied when it succeeds: the two change places. Bindings are kept per number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import load_file

from bundle import Bundle
from elman import v1
from server.engine.errors import EngineError, ModelLoadError
from server.engine.interface import Arrays
from server.engine.providers import ProviderChoice, open_session

_DTYPES: dict[int, type[np.generic]] = {
    v1.DATA_TYPE_FLOAT32: np.float32,
    v1.DATA_TYPE_FLOAT16: np.float16,
    v1.DATA_TYPE_INT64: np.int64,
    v1.DATA_TYPE_INT32: np.int32,
}
_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
TensorSpec = v1.InputSpec | v1.ConstantSpec | v1.StateSpec | v1.OutputSpec


@dataclass(frozen=True)
class _Tensor:
    """A graph tensor as the engine keeps it: `rows` is [capacity, *shape] whatever the graph's row axis is."""

    name: str
    row_axis: int
    rows: NDArray[Any]


@dataclass(frozen=True)
class _Bound:
    """A binding of some rows. Tensors whose row axis is not 0 cannot be bound in place: they pass through a scratch
    array of the graph's own layout."""

    binding: onnxruntime.IOBinding
    copied_in: list[tuple[NDArray[Any], NDArray[Any]]]
    copied_out: list[tuple[NDArray[Any], NDArray[Any]]]


class OnnxEngine:
    """Runs a bundle's step; implements `Engine`.

    Args:
        bundle: the model.
        capacity: the number of rows.
        choice: where to run.
        threads: how many threads one step may use on the CPU.

    Raises:
        ModelLoadError: the graph is rejected, or is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, *, capacity: int, choice: ProviderChoice, threads: int) -> None:
        opened = open_session(bundle.graph_path, choice, threads)
        self._session = opened.session
        self._provider = opened.provider
        self._capacity = capacity
        step = bundle.spec.step
        _check_graph(bundle, self._session)

        def allocate(name: str, spec: TensorSpec) -> _Tensor:
            rows = np.zeros((capacity, *spec.shape), dtype=_DTYPES[spec.data_type])
            return _Tensor(name, spec.row_axis, rows)

        self._inputs = [allocate(spec.name, spec) for spec in step.inputs]
        self._constants = [allocate(spec.name, spec) for spec in step.constants]
        self._outputs = [allocate(spec.name, spec) for spec in step.outputs]
        # Front is the rows' state now, back is where the next step writes; `commit` exchanges them.
        self._front = [allocate(spec.input_name, spec) for spec in step.states]
        self._back = [allocate(spec.input_name, spec) for spec in step.states]
        self._next_names = [spec.output_name for spec in step.states]
        self._initial = _initial_values(bundle)
        self._front_is_first = True
        self._bindings: dict[tuple[int, bool], _Bound] = {}

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def provider(self) -> str:
        return self._provider.value

    def insert(self, row: int, state: Arrays | None = None, constants: Arrays | None = None) -> None:
        values = self._initial if state is None else state
        for tensor in self._front:
            tensor.rows[row] = values[tensor.name]
        for tensor in self._constants:
            if constants is None or tensor.name not in constants:
                raise EngineError(f"the constant {tensor.name} is missing")
            tensor.rows[row] = constants[tensor.name]

    def move(self, source: int, destination: int) -> None:
        for tensor in (*self._front, *self._constants):
            tensor.rows[destination] = tensor.rows[source]

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        return {tensor.name: tensor.rows[row].copy() for tensor in self._front}

    def step(self, rows: range, inputs: Arrays) -> dict[str, NDArray[Any]]:
        part = slice(rows.start, rows.stop)
        for tensor in self._inputs:
            tensor.rows[part] = inputs[tensor.name]
        bound = self._bound(rows)
        for source, destination in bound.copied_in:
            np.copyto(destination, source)
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(str(error)) from error
        for source, destination in bound.copied_out:
            np.copyto(destination, source)
        return {tensor.name: tensor.rows[part] for tensor in self._outputs}

    def commit(self) -> None:
        self._front, self._back = self._back, self._front
        self._front_is_first = not self._front_is_first

    def warm_up(self) -> None:
        """Run every batch size that is likely once, so that no caller pays for first-time work."""
        size = 1
        while True:
            inputs = {tensor.name: np.zeros_like(tensor.rows[:size]) for tensor in self._inputs}
            for _ in range(2):  # Both halves of the ping-pong have bindings of their own.
                self.step(range(size), inputs)
                self.commit()
            if size == self._capacity:
                return
            size = min(2 * size, self._capacity)

    def _bound(self, rows: range) -> _Bound:
        if rows.start != 0:  # Only a failed batch is run in parts; that is rare, and not worth keeping.
            return self._bind(rows)
        key = (rows.stop, self._front_is_first)
        if key not in self._bindings:
            self._bindings[key] = self._bind(rows)
        return self._bindings[key]

    def _bind(self, rows: range) -> _Bound:
        bound = _Bound(self._session.io_binding(), [], [])
        part = slice(rows.start, rows.stop)
        for tensor in (*self._inputs, *self._constants, *self._front):
            values = tensor.rows[part]
            if tensor.row_axis != 0:
                scratch = np.ascontiguousarray(np.moveaxis(values, 0, tensor.row_axis))
                bound.copied_in.append((np.moveaxis(values, 0, tensor.row_axis), scratch))
                values = scratch
            bound.binding.bind_input(tensor.name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
        nexts = zip(self._next_names, self._back, strict=True)
        for name, tensor in (*((tensor.name, tensor) for tensor in self._outputs), *nexts):
            values = tensor.rows[part]
            if tensor.row_axis != 0:
                scratch = np.ascontiguousarray(np.moveaxis(values, 0, tensor.row_axis))
                bound.copied_out.append((scratch, np.moveaxis(values, 0, tensor.row_axis)))
                values = scratch
            bound.binding.bind_output(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
        return bound


def _initial_values(bundle: Bundle) -> dict[str, NDArray[Any]]:
    values: dict[str, NDArray[Any]] = {}
    for state in bundle.spec.step.states:
        dtype, shape = _DTYPES[state.data_type], tuple(state.shape)
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
        if _ONNX_TYPES.get(node.type) is not _DTYPES[spec.data_type]:
            raise ModelLoadError(
                f"{bundle.graph_path}: {side} {name!r} is {node.type}, the manifest says "
                f"{np.dtype(_DTYPES[spec.data_type])}"
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
