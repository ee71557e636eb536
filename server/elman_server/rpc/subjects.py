"""What Embed and Inspect tell of a model: states, an output, or single units, by name; and how it is written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.engine import NOTHING, Wanted
from elman_server.errors import InvalidFieldError, listed, shortened
from elman_server.rpc.models import ServedModel
from elman_server.scheduling import ReadingFinished

_TENSOR_BYTES = 64  # about what a tensor takes beside its name and numbers


@dataclass(frozen=True)
class Subject:
    """What Embed tells.

    Attributes:
        states: some states; empty where it is an output.
        output: that output, if it is one.
    """

    states: tuple[v1.StateSpec, ...]
    output: v1.OutputSpec | None

    def wanted(self, *, every_step: bool) -> Wanted:
        """What a reading has to be told for it beside what every reading is."""
        if self.output is None:
            return Wanted(states=every_step)
        return NOTHING if self.output.HasField("label_logits") else Wanted(outputs=True)

    def size(self, step_count: int) -> int:
        """About how many bytes it takes after so many steps."""
        specs = [self.output] if self.output is not None else self.states
        return sum(_size(spec) * step_count + _TENSOR_BYTES + len(_name(spec)) for spec in specs)

    def tensors(self, finished: ReadingFinished, *, every_step: bool) -> list[v1.Tensor]:
        """What a reading has found of it."""
        if self.output is not None:
            outputs = finished.outputs if every_step else finished.outputs[-1]
            return [_tensor(self.output, outputs)]
        values = finished.states if every_step else finished.state
        assert values is not None
        return [_tensor(spec, values[spec.input_name]) for spec in self.states]


def embedded_subject(request: v1.EmbedRequest, model: ServedModel) -> Subject:
    """What a request wants to be told.

    Raises:
        InvalidFieldError: the model has no such state or output.
    """
    if request.WhichOneof("subject") == "output":
        outputs = {output.name: output for output in model.bundle.spec.step.outputs}
        if request.output not in outputs:
            raise InvalidFieldError(
                "output", repr(shortened(request.output)), f"the outputs of {model.name!r} are {listed(outputs)}"
            )
        return Subject((), outputs[request.output])
    states = _states(model)
    names = list(request.states.names) or list(states)
    if not names:
        raise InvalidFieldError("states", "none", f"{model.name!r} carries no state", "Choose an output")
    for index, name in enumerate(names):
        _check_state(name, f"states.names[{index}]", states, model)
        if name in names[:index]:
            raise InvalidFieldError(f"states.names[{index}]", repr(name), "a state may be named once")
    return Subject(tuple(states[name] for name in names), None)


@dataclass(frozen=True)
class Units:
    """Units of states.

    Attributes:
        indices: pairs of a state's input name and places in the flattened state, int64 [units].
    """

    indices: tuple[tuple[str, NDArray[np.int64]], ...]

    def __len__(self) -> int:
        return sum(len(places) for _, places in self.indices)

    def to_proto(self) -> list[v1.UnitSelection]:
        return [v1.UnitSelection(state_name=name, indices=places.tolist()) for name, places in self.indices]

    def values(self, states: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Their values, [steps, units], in states [steps, *shape]."""
        parts = [states[name].reshape(len(states[name]), -1)[:, places] for name, places in self.indices]
        return np.concatenate(parts, axis=1).astype(np.float32)


def inspected_units(request: v1.InspectRequest, model: ServedModel) -> Units:
    """The units that a request names.

    Raises:
        InvalidFieldError: the model has no such state, the state no such unit, or a state is named twice.
    """
    states = _states(model)
    if not states:
        raise InvalidFieldError("units", "none", f"{model.name!r} carries no state", "Choose another model")
    selections: Sequence[v1.UnitSelection] = request.units
    found: list[tuple[str, NDArray[np.int64]]] = []
    for number, selection in enumerate(selections or [v1.UnitSelection(state_name=name) for name in states]):
        field, name = f"units[{number}]", selection.state_name
        _check_state(name, f"{field}.state_name", states, model)
        if any(name == other for other, _ in found):
            raise InvalidFieldError(
                f"{field}.state_name", repr(name), "a state may be named once", "Name all its units together"
            )
        count = _numbers(states[name])
        places = np.array(selection.indices or range(count), np.int64)
        wrong = np.flatnonzero((places < 0) | (places >= count))
        if wrong.size:
            raise InvalidFieldError(
                f"{field}.indices[{wrong[0]}]", places[wrong[0]], f"the units of {name!r} are 0 to {count - 1}"
            )
        found.append((name, places))
    return Units(tuple(found))


def state_size(model: ServedModel) -> int:
    """How many bytes the states of one step have."""
    return sum(_size(spec) for spec in _states(model).values())


def _states(model: ServedModel) -> dict[str, v1.StateSpec]:
    return {state.input_name: state for state in model.bundle.spec.step.states}


def _check_state(name: str, field: str, states: Mapping[str, v1.StateSpec], model: ServedModel) -> None:
    if name not in states:
        raise InvalidFieldError(
            field, repr(shortened(name)), f"the states of {model.name!r} are: {listed(states) or 'none'}"
        )


def _name(spec: v1.StateSpec | v1.OutputSpec) -> str:
    return spec.input_name if isinstance(spec, v1.StateSpec) else spec.name


def _numbers(spec: v1.StateSpec | v1.OutputSpec) -> int:
    return math.prod(spec.shape)


def _size(spec: v1.StateSpec | v1.OutputSpec) -> int:
    return _numbers(spec) * element_type(spec.data_type).dtype.itemsize


def _tensor(spec: v1.StateSpec | v1.OutputSpec, values: NDArray[Any]) -> v1.Tensor:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return v1.Tensor(name=_name(spec), data_type=spec.data_type, shape=values.shape, content=little.tobytes())
