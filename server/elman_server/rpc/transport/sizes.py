"""The sizes of messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from elman_server.errors import MessageTooLargeError

_FRAME_BYTES = 6  # overhead of a part in its message, at most

_Part = TypeVar("_Part", bound=Message)


def check_size(message: Message, limit: int) -> None:
    """Refuse a message of more bytes than allowed.

    Raises:
        MessageTooLargeError: it has more.
    """
    size = message.ByteSize()
    if size > limit:
        raise MessageTooLargeError(size, limit)


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
