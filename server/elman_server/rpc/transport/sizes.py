"""The sizes of messages: those that arrive are checked before they are parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from elman_server.errors import MalformedMessageError, MessageTooLargeError

_FRAME_BYTES = 6  # overhead of a part in its message, at most

_Part = TypeVar("_Part", bound=Message)


Parse = Callable[[bytes], Message]


def parsed(message: bytes, parse: Parse, limit: int) -> Message:
    """Parse a message that has arrived.

    Args:
        message: its bytes.
        parse: parses them.
        limit: how many bytes it may have.

    Raises:
        MessageTooLargeError: it has more.
        MalformedMessageError: it cannot be parsed.
    """
    if len(message) > limit:
        raise MessageTooLargeError(len(message), limit)
    try:
        return parse(message)
    except DecodeError:
        raise MalformedMessageError(len(message)) from None


def grouped(parts: Iterable[_Part], limit: int) -> Iterator[list[_Part]]:
    """Yield parts in order, as many together as have at most `limit` bytes; one at least."""
    group: list[_Part] = []
    size = 0
    for part in parts:
        more = part.ByteSize() + _FRAME_BYTES
        if group and size + more > limit:
            yield group
            group, size = [], 0
        group.append(part)
        size += more
    if group:
        yield group
