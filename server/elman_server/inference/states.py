"""The states and outputs of a model that requests may look at, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

from elman_bundle.spec import OutputSpec, StateSpec, element_type
from elman_server.errors import InvalidFieldError, listed, shortened
from elman_server.inference.model import ServedModel


def states_of(model: ServedModel) -> dict[str, StateSpec]:
    """Return the states of a model by their input names."""
    return {state.input_name: state for state in model.bundle.spec.step.states}


def check_state(name: str, field: str, states: Mapping[str, StateSpec], model: ServedModel) -> None:
    """Check that a model has a state.

    Raises:
        InvalidFieldError: it has none of that name.
    """
    if name not in states:
        rule = f"the states of {model.name!r} are: {listed(states) or 'none'}"
        raise InvalidFieldError(field, repr(shortened(name)), rule)


def state_bytes(model: ServedModel) -> int:
    """Return the bytes of the states after one step."""
    return sum(value_bytes(spec) for spec in states_of(model).values())


def value_bytes(spec: StateSpec | OutputSpec) -> int:
    """Return the bytes of a state or an output after one step."""
    return math.prod(spec.shape) * element_type(spec.data_type).dtype.itemsize
