"""What an encoder reads before the first step of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from elman_server.errors import InvalidFieldError
from elman_server.inference.input_forms import Input, NumberInput
from elman_server.inference.inputs import check_source_length, count_unknown, encode, numbers_described, read_numbers
from elman_server.inference.limits import Limits
from elman_server.inference.model import ServedModel
from elman_server.scheduling import Source


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """A source as the encoder reads it.

    Attributes:
        source: for the scheduler; sequences that share it have it read once.
        position_count: number of its positions.
        unknown_count: how many of its positions stand for something that the encoder's vocabulary does not have.
    """

    source: Source
    position_count: int
    unknown_count: int


async def read_source(given: Input | None, model: ServedModel, limits: Limits) -> EncodedSource | None:
    """Return the source of a request; None for a model without an encoder.

    Raises:
        InvalidFieldError: it is missing or not expected, is empty or too long, or is not what the encoder reads.
    """
    if not model.has_encoder:
        if given is not None:
            raise InvalidFieldError("source", "a source", f"{model.name!r} has no encoder", "Leave it out")
        return None
    spec, vocabulary = model.bundle.spec.encoder.input, model.source_vocabulary
    expected = "text or tokens" if vocabulary else f"a tensor, {numbers_described(spec, 'positions')}"
    if given is None:
        raise InvalidFieldError("source", "none", f"{model.name!r} starts from a source", f"Give {expected}")
    if isinstance(given, NumberInput) == (vocabulary is not None):
        got = given.field.rpartition(".")[2]
        raise InvalidFieldError(given.field, got, f"the encoder of {model.name!r} reads {expected}")
    values: NDArray[Any]
    if vocabulary is None:
        values = read_numbers(given, spec, limits, f"the encoder of {model.name!r}", "positions")
    else:
        values = await encode(given, vocabulary, model, limits)
    check_source_length(values, given.field, model)
    return EncodedSource(Source(values), len(values), count_unknown(values, vocabulary))
