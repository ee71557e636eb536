"""The graphs of a model: each number of steps has one, run for any range of rows.

All threads share every operator of a run, so that the weights are read once; or one thread runs some rows alone, while
others run other rows. With all threads in every operator each waits for the slowest, and as soon as something else
needs a core, all wait; threads with rows of their own do not. Results are the same to the bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.engine.constants import Constants
from elman_server.engine.interface import Arrays, OutputSelection
from elman_server.engine.memory import Buffer, CudaBuffer, HostBuffer
from elman_server.engine.providers import OpenedSession, Opener, Provider
from elman_server.engine.trials.limits import RunLimit
from elman_server.engine.unrolling import FILTERS, StepGraph, given_name, next_name, unroll
from elman_server.engine.weights import Weights
from elman_server.errors import EngineError, ModelLoadError


@dataclass(frozen=True)
class State:
    """The two buffers of a state, [capacity, *shape]: a run reads one and writes the other.

    Attributes:
        name: its input name in the manifest.
        buffers: the buffers.
    """

    name: str
    buffers: tuple[Buffer, Buffer]


class Storage:
    """The arrays that all graphs of a model share.

    Args:
        provider: where the model runs.
        capacity: the number of rows.
        spec: the model.

    Attributes:
        constants: the constants of each row.
        states: the states of each row.
    """

    def __init__(self, provider: Provider, capacity: int, spec: v1.ModelSpec) -> None:
        self.capacity = capacity
        self._buffer: type[HostBuffer] | type[CudaBuffer] = CudaBuffer if provider is Provider.CUDA else HostBuffer
        self.constants = Constants(spec.step.constants, capacity, spec.encoder.longest_source, self.allocate)
        self.states: list[State] = []
        for state in spec.step.states:
            shape, dtype = state.shape, element_type(state.data_type).dtype
            buffers = (self.allocate(shape, dtype), self.allocate(shape, dtype))
            self.states.append(State(state.input_name, buffers))

    def allocate(self, shape: Iterable[int], dtype: Any) -> Buffer:
        """A buffer of `capacity` rows of a shape."""
        return self._buffer((self.capacity, *shape), dtype)

    def allocate_like(self, values: Iterable[onnx.ValueInfoProto]) -> dict[str, Buffer]:
        """Returns buffers for the inputs or outputs of a graph that are neither constants nor states."""
        own = {name for state in self.states for name in (given_name(state.name), next_name(state.name))}
        own |= set(map(given_name, self.constants.buffers))
        buffers: dict[str, Buffer] = {}
        for value in values:
            if value.name not in own:
                tensor = value.type.tensor_type
                shape = [size.dim_value if size.HasField("dim_value") else self.capacity for size in tensor.shape.dim]
                buffers[value.name] = self._buffer(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return buffers


@dataclass(frozen=True)
class _Bound:
    """The binding of a range of rows, and the options of its runs."""

    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions | None


class Graph:
    """One graph.

    Args:
        model: the graph.
        weights: what it refers to.
        path: the file to name in errors.
        opener: opens its sessions.
        storage: constants and states.
        limit: ends runs while the model is loaded.
        captures: whether runs may be captured as CUDA graphs.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: Weights,
        path: Path,
        opener: Opener,
        storage: Storage,
        limit: RunLimit,
        *,
        captures: bool,
    ) -> None:
        self._model = model.SerializeToString()
        self._weights = weights
        self._path = path
        self._opener = opener
        self._storage = storage
        self._limit = limit
        self._captures = captures
        inputs = storage.allocate_like(model.graph.input)
        if FILTERS.candidates in inputs:  # One number for all rows of a run, kept at its first row.
            inputs[FILTERS.candidates] = storage.allocate((), np.int64)
        self._inputs: Mapping[str, Buffer] = inputs
        self._outputs: Mapping[str, Buffer] = storage.allocate_like(model.graph.output)
        self._bindings: dict[tuple[bool, int, int, int], _Bound] = {}
        self._version = storage.constants.version
        self._opening = threading.Lock()

    # Opened on first use, during the warm-up: most graphs need only one of the two.
    @cached_property
    def _together(self) -> OpenedSession:
        return self._opener.open(self._model, self._path, weights=self._weights, captures=self._captures)

    @cached_property
    def _single(self) -> OpenedSession:
        return self._opener.open(self._model, self._path, weights=self._weights, threads=1)

    def run(self, rows: range, feeds: Arrays, phase: int, *, alone: bool) -> None:
        """Run adjacent rows; other threads may run other rows at the same time.

        Args:
            rows: the rows.
            feeds: by input name, [rows, ...].
            phase: which of a state's buffers is read; the other is written.
            alone: whether one thread runs them.

        Raises:
            EngineError: onnxruntime failed.
        """
        for name, values in feeds.items():
            self._inputs[name].write(rows.start, values)
        try:
            with self._opening:
                opened = self._single if alone else self._together
                bound = self._bound(opened, rows, phase, alone=alone)
        except ModelLoadError as error:
            raise EngineError(str(error)) from error
        try:
            opened.session.run_with_iobinding(bound.binding, bound.options or self._limit.current)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(str(error)) from error

    def read(self, name: str, rows: range) -> NDArray[Any]:
        """Returns an output of the last run, [rows, ...], valid until the next one."""
        return self._outputs[name].read(rows.start, len(rows))

    def _bound(self, opened: OpenedSession, rows: range, phase: int, *, alone: bool) -> _Bound:
        if opened.captures and rows.start == 0:
            # A captured graph has one size; running unused rows does no harm.
            rows = range(min(1 << (len(rows) - 1).bit_length(), self._storage.capacity))
        if self._version != self._storage.constants.version:  # The bound buffers have been replaced.
            self._bindings.clear()
            self._version = self._storage.constants.version
        key = (alone, rows.start, rows.stop, phase)
        if key not in self._bindings:
            options = None
            if opened.captures:
                options = self._limit.captured_options(2 * len(rows) + phase if rows.start == 0 else -1)
            self._bindings[key] = _Bound(self._bind(opened, rows, phase), options)
        return self._bindings[key]

    def _bind(self, opened: OpenedSession, rows: range, phase: int) -> onnxruntime.IOBinding:
        binding = opened.session.io_binding()

        def place(buffer: Buffer) -> tuple[str, int, np.dtype[Any], tuple[int, ...], int]:
            return buffer.device, 0, buffer.dtype, (len(rows), *buffer.shape[1:]), buffer.address(rows.start)

        for name, buffer in self._inputs.items():
            if name == FILTERS.candidates:
                binding.bind_input(name, buffer.device, 0, buffer.dtype, (1,), buffer.address(rows.start))
            else:
                binding.bind_input(name, *place(buffer))
        for name, buffer in self._storage.constants.buffers.items():
            binding.bind_input(given_name(name), *place(buffer))
        for name, buffer in self._outputs.items():
            binding.bind_output(name, *place(buffer))
        for state in self._storage.states:
            binding.bind_input(given_name(state.name), *place(state.buffers[phase]))
            binding.bind_output(next_name(state.name), *place(state.buffers[1 - phase]))
        return binding


class StepGraphs:
    """The graphs of a model, opened when they are first needed.

    Args:
        path: the file to name in errors.
        step: the step, which is unrolled.
        weights: what all graphs refer to.
        opener: opens sessions.
        storage: constants and states.
        limit: ends runs while the model is loaded.
    """

    def __init__(
        self, path: Path, step: StepGraph, weights: Weights, opener: Opener, storage: Storage, limit: RunLimit
    ) -> None:
        self._path = path
        self._step = step
        self._weights = weights
        self._opener = opener
        self._storage = storage
        self._limit = limit
        self._graphs: dict[tuple[int, bool, OutputSelection], Graph] = {}
        self._opening = threading.Lock()

    @property
    def separated(self) -> bool:
        """Whether onnxruntime is kept from fusing operators of different steps."""
        return self._step.separated

    def separate(self) -> None:
        """Keep onnxruntime from fusing operators of different steps. Graphs that are open already are dropped."""
        self._step = replace(self._step, separated=True)
        self._graphs.clear()

    def get(self, count: int, *, filtered: bool, selection: OutputSelection) -> Graph:
        """The graph of `count` steps.

        Args:
            count: the number of steps.
            filtered: whether rows sample from their most probable tokens only.
            selection: what it returns beyond tokens and labels.
        """
        key = (count, filtered, selection)
        if key in self._graphs:
            return self._graphs[key]
        with self._opening:
            if key not in self._graphs:  # Another thread may have opened it meanwhile.
                model = unroll(self._step, count, filtered=filtered, selection=selection)
                # The number of candidates is read on the host, which a captured graph would never do again; nor would
                # it see that constants of variable length have moved.
                variable = any(constant.variable_length for constant in self._step.spec.constants)
                captures = not filtered and not variable
                self._graphs[key] = Graph(
                    model, self._weights, self._path, self._opener, self._storage, self._limit, captures=captures
                )
        return self._graphs[key]
