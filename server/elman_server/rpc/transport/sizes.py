"""The sizes of messages: those that arrive are checked before they are parsed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from elman_server.errors import MalformedMessageError, MessageTooLargeError, TooManyFieldsError

_FRAME_BYTES = 6  # overhead of a part in its message, at most
_MAX_FIELDS = 2**18  # of a message, those of its parts included
_FIELD_BYTES = 2  # of a field, at least: its tag, and its value or length

_Part = TypeVar("_Part", bound=Message)


Parse = Callable[[bytes], Message]


async def parsed(message: bytes, parse: Parse, limit: int) -> Message:
    """Parse a message that has arrived.

    Args:
        message: its bytes.
        parse: parses them; a method of the message's class.
        limit: how many bytes it may have.

    Raises:
        MessageTooLargeError: it has more.
        TooManyFieldsError: it has too many fields: an empty part takes two bytes here and a hundred when it is parsed.
        MalformedMessageError: it cannot be parsed.
    """
    if len(message) > limit:
        raise MessageTooLargeError(len(message), limit)
    if len(message) > _MAX_FIELDS * _FIELD_BYTES:
        kind: Any = getattr(parse, "__self__")  # noqa: B009
        if await asyncio.to_thread(has_more_fields, message, kind.DESCRIPTOR, _MAX_FIELDS):
            raise TooManyFieldsError(_MAX_FIELDS)
    try:
        return parse(message)
    except DecodeError:
        raise MalformedMessageError(len(message)) from None


def has_more_fields(message: bytes, kind: Descriptor, limit: int) -> bool:
    """Whether a serialized message has more than `limit` fields, those of its parts included. What is malformed is left
    to the parser. See https://protobuf.dev/programming-guides/encoding

    Args:
        message: its bytes.
        kind: its type.
        limit: the number of fields.
    """
    count = 0
    pending = [(0, len(message), kind)]
    while pending:
        at, end, kind = pending.pop()
        while at < end:
            count += 1
            if count > limit:
                return True
            try:
                tag, at = _varint(message, at)
                wire_type = tag & 7
                if wire_type == _VARINT:
                    _, at = _varint(message, at)
                elif wire_type == _BYTES:
                    size, at = _varint(message, at)
                    field = kind.fields_by_number.get(tag >> 3)
                    if field is not None and field.message_type is not None:
                        pending.append((at, min(at + size, end), field.message_type))
                    at += size
                else:
                    at += _FIXED_BYTES.get(wire_type, 0)
            except IndexError:
                return False
    return False


_VARINT, _BYTES = 0, 2  # types of values on the wire
_FIXED_BYTES = {1: 8, 5: 4}


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Returns a number of variable length and where it ends."""
    byte = message[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at + 1


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
