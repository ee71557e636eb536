"""The declaration of a request's fields, and the fingerprint of a call that the declaration defines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from google.protobuf.message import Message

DECLARED: dict[str, RequestFields] = {}  # by the full name of the message


class RequestFields:
    """All fields of a request message, divided into those that say what is asked for and those that do not.

    A call in a session is known by its name, and two calls of the same name must ask for the same: they have the same
    fingerprint. Fingerprints are stored with sessions, so moving a field from one set to the other, or renaming a
    message, makes the server refuse retries of calls from before.

    Args:
        message: the type of the message.
        content: fields that say what is asked for; part of the fingerprint.
        delivery: fields that say how, when or under which name a call is answered; not part of it.

    Raises:
        ValueError: a field of the message is missing, or is none.
    """

    def __init__(self, message: type[Message], *, content: Iterable[str], delivery: Iterable[str] = ()) -> None:
        self.descriptor = message.DESCRIPTOR
        self.content, self.delivery = frozenset(content), frozenset(delivery)
        fields = self.descriptor.fields_by_name.keys()
        if self.content & self.delivery or self.content | self.delivery != set(fields):
            raise ValueError(
                f"{message.DESCRIPTOR.full_name} has the fields {sorted(fields)}: declare each of them once"
            )
        DECLARED[message.DESCRIPTOR.full_name] = self

    def fingerprint(self, request: Message) -> bytes:
        """Return 16 bytes that are equal for equal content."""
        content = type(request)()
        content.CopyFrom(request)
        for field in self.delivery:
            content.ClearField(field)
        # The name, because requests of two kinds may have the same bytes.
        written = self.descriptor.full_name.encode() + b"\n" + content.SerializeToString(deterministic=True)
        return hashlib.blake2b(written, digest_size=16).digest()
