"""Several inputs of one request: encoded one after the other, with turns for other calls in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from elman_bundle.vocabulary import TokenIds
from elman_server.errors import InputTooLongError, InvalidFieldError
from elman_server.rpc.validation import Limits

_AT_ONCE = 64  # inputs that are encoded before other calls have a turn
_TOKENS_AT_ONCE = 20_000  # likewise

_Given = TypeVar("_Given")


async def encode_all(
    inputs: Sequence[_Given],
    field: str,
    encode: Callable[[_Given, str], Awaitable[TokenIds]],
    limits: Limits,
    *,
    least: int,
    most: int,
    already: int = 0,
) -> list[TokenIds]:
    """The ids of each of some inputs.

    Args:
        inputs: the inputs.
        field: the request's.
        encode: gives the ids of one, told its field.
        limits: how many tokens all of them together may have.
        least: how many inputs there are at least.
        most: how many there are at most.
        already: so many tokens go before them.

    Raises:
        InvalidFieldError: they are too few or too many, have too many tokens, or one cannot be encoded.
    """
    if not least <= len(inputs) <= most:
        raise InvalidFieldError(field, len(inputs), f"must be {least} to {most}", limit=most)
    found: list[TokenIds] = []
    total, since = already, 0
    for index, given in enumerate(inputs):
        if index % _AT_ONCE == _AT_ONCE - 1 or since > _TOKENS_AT_ONCE:
            await asyncio.sleep(0)
            since = 0
        found.append(await encode(given, f"{field}[{index}]"))
        total, since = total + len(found[-1]), since + len(found[-1])
        if total > limits.total_tokens:
            got, rule = f"{total} tokens up to this one", f"one request may have {limits.total_tokens}"
            remedy = "Split the request"
            raise InputTooLongError(f"{field}[{index}]", got, rule, remedy, limit=limits.total_tokens)
    return found
