"""The use case Inspect: what units of the states do while a model reads an input. It is read in parts, so that only the
states of a few steps are in memory at a time."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_bundle.vocabulary import TokenIds
from elman_server.engine import Arrays, OutputSelection
from elman_server.errors import InvalidFieldError, ResponseTooLargeError
from elman_server.inference.delivery import Mailbox
from elman_server.inference.input_forms import Input, TextInput
from elman_server.inference.inputs import with_begin
from elman_server.inference.model import ServedModel
from elman_server.inference.offload import offload
from elman_server.inference.readings import run_reading
from elman_server.inference.resources import Resources
from elman_server.inference.score import read_nonempty
from elman_server.inference.states import check_state, state_bytes, states_of
from elman_server.scheduling import Reading

_PART_STEPS = 256
_PART_BYTES = 16 * 1024 * 1024  # of states and of what is sent of them; one step may have more
_UNIT_BYTES = 20  # of the value of a unit: in the array of units, in single precision, and in its message
_STEP_BYTES = 32  # approximate overhead of a step in a response
_VALUE_BYTES = 4  # of the value of a unit in a response


@dataclass(frozen=True)
class UnitSelection:
    """Units of a state.

    Attributes:
        state: name of the state.
        indices: places in the flattened state; empty for all units.
    """

    state: str
    indices: Sequence[int]


@dataclass(frozen=True)
class InspectRequest:
    """A request to look at units.

    Attributes:
        model: name of the model; "" for the only one that suits.
        input: what the model reads.
        units: the units; empty for all of them.
    """

    model: str = ""
    input: Input | None = None
    units: Sequence[UnitSelection] = ()


@dataclass(frozen=True)
class InspectStarted:
    """The request has been accepted.

    Attributes:
        model: name of the model.
        digest: digest of its bundle.
        units: the units in the order of the values.
        step_count: number of tokens, the begin token included.
        unknown_token_count: how many of them the vocabulary does not have.
    """

    model: str
    digest: str
    units: list[UnitSelection]
    step_count: int
    unknown_token_count: int


@dataclass(frozen=True)
class InspectedSteps:
    """What some steps show.

    Attributes:
        ids: int64 [T], the tokens that were read.
        texts: the text of each.
        values: float32 [T, units], after each.
    """

    ids: TokenIds
    texts: list[str]
    values: NDArray[np.float32]


async def inspect(
    resources: Resources, request: InspectRequest
) -> AsyncGenerator[InspectStarted | InspectedSteps, None]:
    """Answer a request: with its start, and with the steps in order. The next steps are taken when they are asked for.

    Args:
        resources: what the server has.
        request: the request.

    Raises:
        DomainError: why it cannot be answered, or not to its end.
    """
    model = resources.models.that_reads(request.model)
    units = _select(request, model)
    _check_response_size(units, resources)
    given = await read_nonempty(request.input or TextInput("input.text", ""), model, resources)
    read = with_begin(given, model.begin_tokens)
    yield InspectStarted(model.name, model.bundle.digest, units.selections(), len(read.ids), read.unknown_count)
    texts = [""] * len(model.begin_tokens)  # A begin token is not part of the text.
    texts += await offload(len(given.ids), lambda: model.token_texts(given.ids))
    state: Arrays | None = None
    length = _part_length(units, model)
    for start in range(0, len(read.ids), length):
        part, mailbox = slice(start, start + length), Mailbox()
        reading = Reading(
            read.ids[part],
            mailbox,
            state,
            position=start,
            keep_state=True,
            every_step=False,
            selection=OutputSelection(states=True),
        )
        # The parts after the first belong to an input that has been admitted.
        finished = await run_reading(model, reading, mailbox, always=start > 0)
        state = finished.state
        yield InspectedSteps(read.ids[part], texts[part], units.values(finished.states))


@dataclass(frozen=True)
class _Units:
    """Units of states.

    Attributes:
        indices: pairs of the name of a state and places in the flattened state, int64 [units].
    """

    indices: tuple[tuple[str, NDArray[np.int64]], ...]

    def __len__(self) -> int:
        return sum(len(places) for _, places in self.indices)

    def selections(self) -> list[UnitSelection]:
        return [UnitSelection(name, places.tolist()) for name, places in self.indices]

    def values(self, states: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return their values [T, units] in states [T, *shape]."""
        parts = [states[name].reshape(len(states[name]), -1)[:, places] for name, places in self.indices]
        return np.concatenate(parts, axis=1).astype(np.float32)


def _select(request: InspectRequest, model: ServedModel) -> _Units:
    """Return the units of a request.

    Raises:
        InvalidFieldError: the model has no such state, the state no such unit, or a state is named twice.
    """
    states = states_of(model)
    if not states:
        raise InvalidFieldError("units", "none", f"{model.name!r} carries no state", "Choose another model")
    found: dict[str, NDArray[np.int64]] = {}
    for number, selection in enumerate(request.units or [UnitSelection(name, ()) for name in states]):
        field, name = f"units[{number}]", selection.state
        check_state(name, f"{field}.state_name", states, model)
        if name in found:
            rule = "a state may be named once"
            raise InvalidFieldError(f"{field}.state_name", repr(name), rule, "Name all its units together")
        count = math.prod(states[name].shape)
        places = np.array(selection.indices or range(count), np.int64)
        wrong = np.flatnonzero((places < 0) | (places >= count))
        if wrong.size:
            place = f"{field}.indices[{wrong[0]}]"
            raise InvalidFieldError(place, places[wrong[0]], f"the units of {name!r} are 0 to {count - 1}")
        found[name] = places
    return _Units(tuple(found.items()))


def _check_response_size(units: _Units, resources: Resources) -> None:
    """Refuse a selection of which one step would not fit into a message.

    Raises:
        ResponseTooLargeError: there are.
    """
    size, limit = _STEP_BYTES + _VALUE_BYTES * len(units), resources.limits.message_bytes
    if size > limit:
        got, rule = f"{len(units)} units, about {size} bytes a step", f"at most {limit} are allowed"
        raise ResponseTooLargeError("units", got, rule, "Name fewer", size=size, limit=limit)


def _part_length(units: _Units, model: ServedModel) -> int:
    """Return how many steps are in memory at a time."""
    step_bytes = state_bytes(model) + _UNIT_BYTES * len(units)
    return max(1, min(_PART_STEPS, _PART_BYTES // max(1, step_bytes)))
