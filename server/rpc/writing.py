"""Sending the messages of a stream: of a size that may be, to a client that may not read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from server.rpc.callers import Context
from server.rpc.errors import ClientTooSlowError

_Part = TypeVar("_Part", bound=Message)
_FRAME_BYTES = 6  # what a part takes in its message beside its own bytes, at most


async def write_message(context: Context, message: Message, timeout: float) -> None:
    """Send a message.

    Args:
        context: the call.
        message: one of its responses.
        timeout: seconds that the client may leave it unread.

    Raises:
        ClientTooSlowError: the client does not read, and is given up on.
    """
    try:
        async with asyncio.timeout(timeout):
            await context.write(message)
    except TimeoutError as error:
        raise ClientTooSlowError(f"the client has read nothing for {timeout:g} seconds", seconds=timeout) from error


def grouped(parts: Iterable[_Part], most: int) -> Iterator[list[_Part]]:
    """Parts in their order, as many together as have `most` bytes; one at least."""
    group: list[_Part] = []
    size = 0
    for part in parts:
        more = part.ByteSize() + _FRAME_BYTES
        if group and size + more > most:
            yield group
            group, size = [], 0
        group.append(part)
        size += more
    if group:
        yield group
