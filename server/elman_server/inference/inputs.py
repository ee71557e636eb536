"""How what a request gives to read becomes the token ids or numbers that a model reads.

Axes: T tokens, positions or steps.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from elman_bundle import EncodingError, TextVocabulary, normalize_newlines
from elman_bundle.spec import InputSpec, element_type
from elman_bundle.vocabulary import TokenIds
from elman_server.errors import InputTooLongError, InvalidFieldError, shortened
from elman_server.inference.input_forms import Input, NumberInput, TextInput, TokenInput, TreeInput
from elman_server.inference.limits import Limits
from elman_server.inference.model import ServedModel
from elman_server.inference.offload import LONG

_INPUTS_PER_TURN = 64  # encoded before the event loop serves other calls
_TOKENS_PER_TURN = 20_000  # likewise
_SHOWN_DIMENSIONS = 64  # of a tensor with the wrong ones; more than any model has


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """An input as a model reads it.

    Attributes:
        ids: int64 [T].
        unknown_count: how many of them stand for something that the vocabulary does not have.
    """

    ids: TokenIds
    unknown_count: int


async def read_prompt(given: Input | None, model: ServedModel, limits: Limits) -> EncodedInput:
    """Return a prompt, the begin token first where the model has one.

    Raises:
        InvalidFieldError: it is empty and the model has no begin token, or it cannot be encoded.
    """
    prompt = await read_tokens(given, model, limits, begin=model.begin_tokens)
    if not len(prompt.ids):
        field = "text" if given is None else given.field
        rule = f"{model.name!r} has no begin token"
        raise InvalidFieldError(field, "an empty prompt", rule, "Give a prompt of one token or more")
    return prompt


async def read_tokens(
    given: Input | None, model: ServedModel, limits: Limits, *, begin: Sequence[int] = ()
) -> EncodedInput:
    """Return an input of tokens; may be empty.

    Args:
        given: the input.
        model: what reads it.
        limits: how long it may be.
        begin: what goes before it.

    Raises:
        InvalidFieldError: it cannot be encoded.
    """
    vocabulary = model.vocabulary
    ids = await encode(given, vocabulary, model, limits)
    return with_begin(EncodedInput(ids, count_unknown(ids, vocabulary)), begin)


async def encode(given: Input | None, vocabulary: TextVocabulary, model: ServedModel, limits: Limits) -> TokenIds:
    """Return the ids [T] of an input in a vocabulary; may be empty.

    Raises:
        InvalidFieldError: it is neither text nor token ids, is too long, or cannot be encoded.
    """
    longest = limits.input_tokens
    if isinstance(given, TokenInput):
        if len(given.ids) > longest:
            raise _too_long(len(given.ids), given.field, longest)
        ids = np.array(given.ids, dtype=np.int64)
        wrong = np.flatnonzero((ids < 0) | (ids >= vocabulary.size))
        if wrong.size:
            rule = f"the ids of {model.name!r} are 0 to {vocabulary.size - 1}"
            raise InvalidFieldError(f"{given.field}.ids[{wrong[0]}]", ids[wrong[0]], rule)
        return ids
    if given is None:
        return np.empty(0, np.int64)
    if not isinstance(given, TextInput):
        got, rule = ("a tree", "does not read trees") if isinstance(given, TreeInput) else ("a tensor", "reads text")
        raise InvalidFieldError(given.field, got, f"{model.name!r} {rule}", "Give text or tokens")
    text = normalize_newlines(given.text, vocabulary) if "\r" in given.text else given.text
    # Before any work is done: the fewest tokens that the text can have.
    least = -(-len(text) // vocabulary.characters_per_token)
    if least > longest:
        raise _too_long(least, given.field, longest)
    try:
        ids = vocabulary.encode(text) if len(text) < LONG else await asyncio.to_thread(vocabulary.encode, text)
    except EncodingError as error:
        got = f"a text that cannot be encoded at position {_position_in(given.text, text, error.position)}"
        raise InvalidFieldError(given.field, got, str(error)) from error
    if len(ids) > longest:
        raise _too_long(len(ids), given.field, longest)
    return ids


def count_unknown(ids: NDArray[Any], vocabulary: TextVocabulary | None) -> int:
    """Return how many ids stand for something that their vocabulary does not have; 0 for numbers, which have none."""
    unknown = None if vocabulary is None else vocabulary.unknown_id
    return 0 if unknown is None else int(np.count_nonzero(ids == unknown))


def _position_in(given: str, text: str, position: int) -> int:
    """Return the position in a text of a position in the same text with newlines normalized."""
    if len(given) == len(text):
        return position
    shift = 0
    for found in re.finditer("\r\n", given):
        if found.start() - shift >= position:
            break
        shift += 1
    return position + shift


def with_begin(given: EncodedInput, begin: Sequence[int]) -> EncodedInput:
    """Return an input with the tokens that go before it."""
    return EncodedInput(np.concatenate([begin, given.ids]).astype(np.int64), given.unknown_count) if begin else given


def read_numbers(
    given: Input | None, spec: InputSpec, limits: Limits, reader: str, axis: str = "steps"
) -> NDArray[Any]:
    """Return the numbers [T, *shape] of an input; may be empty.

    Args:
        given: the input.
        spec: what the model reads at each step.
        limits: how long it may be.
        reader: what reads it, for messages.
        axis: the name of T, for messages.

    Raises:
        InvalidFieldError: it is no tensor, is too long, or its name, type, shape or content is wrong.
    """
    kind = element_type(spec.data_type)
    expected = numbers_described(spec, axis)
    if given is None or (isinstance(given, NumberInput) and not given.shape and not given.content):
        return np.empty((0, *spec.shape), kind.dtype)
    if isinstance(given, TreeInput):
        raise InvalidFieldError(given.field, "a tree", f"{reader} does not read trees", f"Give a tensor, {expected}")
    if not isinstance(given, NumberInput):
        got = "text" if isinstance(given, TextInput) else "tokens"
        raise InvalidFieldError(given.field, got, f"{reader} reads numbers", f"Give a tensor, {expected}")
    field = given.field
    if given.name not in ("", spec.name):
        raise InvalidFieldError(f"{field}.name", repr(shortened(given.name)), f"the input is named {spec.name!r}")
    if given.data_type != kind.name:
        raise InvalidFieldError(f"{field}.data_type", given.data_type, f"must be {expected}")
    shape = list(given.shape[:_SHOWN_DIMENSIONS])
    if len(given.shape) != 1 + len(spec.shape) or shape[1:] != list(spec.shape) or shape[0] < 0:
        raise InvalidFieldError(f"{field}.shape", shortened(shape), f"must be {expected}")
    if shape[0] > limits.input_tokens:
        raise _too_long(shape[0], field, limits.input_tokens)
    size = math.prod(shape) * kind.dtype.itemsize
    if len(given.content) != size:
        rule = f"numbers of this shape have {size}"
        raise InvalidFieldError(f"{field}.content", f"{len(given.content)} bytes", rule)
    values = np.frombuffer(given.content, kind.dtype.newbyteorder("<")).astype(kind.dtype).reshape(shape)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = wrong[0].tolist()
        got = f"{values[tuple(place)]} at {place}"
        raise InvalidFieldError(f"{field}.content", got, "every number must be finite")
    return values


@dataclass(frozen=True, slots=True)
class Steps:
    """An input to label.

    Attributes:
        values: the ids [T] or the numbers [T, *shape].
        unknown_count: how many of them stand for something that the vocabulary does not have.
    """

    values: NDArray[Any]
    unknown_count: int

    def __len__(self) -> int:
        return len(self.values)


async def read_steps(given: Input | None, model: ServedModel, limits: Limits) -> Steps:
    """Return an input to label; may be empty.

    Raises:
        InvalidFieldError: it cannot be encoded, or is not what the model reads.
    """
    if not model.reads_numbers:
        ids = await encode(given, model.vocabulary, model, limits)
        return Steps(ids, count_unknown(ids, model.vocabulary))
    axis = "positions" if model.reads_source_only else "steps"
    return Steps(read_numbers(given, model.input_spec, limits, repr(model.name), axis), 0)


_Given = TypeVar("_Given")


async def read_all(
    inputs: Sequence[_Given],
    field: str,
    read: Callable[[_Given], Awaitable[EncodedInput]],
    limits: Limits,
    *,
    least: int,
    most: int,
    context_length: int = 0,
) -> list[EncodedInput]:
    """Read the inputs of a request one after the other, with turns for other calls in between.

    Args:
        inputs: the inputs.
        field: the field that holds them.
        read: reads one.
        limits: how many tokens all of them together may have.
        least: the smallest number of inputs.
        most: the largest number of inputs.
        context_length: tokens that go before them and count as well.

    Raises:
        InvalidFieldError: there are too few or too many inputs, they have too many tokens, or one cannot be read.
    """
    if not least <= len(inputs) <= most:
        raise InvalidFieldError(field, len(inputs), f"must be {least} to {most}", limit=most)
    found: list[EncodedInput] = []
    total, since_turn = context_length, 0
    for index, given in enumerate(inputs):
        if index % _INPUTS_PER_TURN == _INPUTS_PER_TURN - 1 or since_turn > _TOKENS_PER_TURN:
            await asyncio.sleep(0)
            since_turn = 0
        found.append(await read(given))
        count = len(found[-1].ids)
        total, since_turn = total + count, since_turn + count
        if total > limits.total_tokens:
            got, rule = f"{total} tokens up to this one", f"a request may have {limits.total_tokens}"
            place = f"{field}[{index}]"
            raise InputTooLongError(place, got, rule, "Split the request", limit=limits.total_tokens)
    return found


def check_source_length(values: NDArray[Any], field: str, model: ServedModel) -> None:
    """Refuse a source that is empty or too long.

    Args:
        values: [positions, *shape].
        field: the field that holds it.
        model: what reads it.

    Raises:
        InvalidFieldError: it is.
    """
    longest = model.bundle.spec.encoder.longest_source
    if not len(values):
        raise InvalidFieldError(field, "an empty source", "a source has one position or more")
    if len(values) > longest:
        rule = f"{model.name!r} reads sources of at most {longest}"
        raise InputTooLongError(field, f"{len(values)} positions", rule, limit=longest)


def numbers_described(spec: InputSpec, axis: str = "steps") -> str:
    """Describe the numbers that an input takes, for messages: "float32 [steps, 3]"."""
    return f"{element_type(spec.data_type).name} [{', '.join([axis, *map(str, spec.shape)])}]"


def _too_long(tokens: int, field: str, limit: int) -> InputTooLongError:
    return InputTooLongError(field, f"{tokens} tokens or more", f"at most {limit} are allowed", limit=limit)
