"""Rows of the SQLite store: their values and checksums.

The checksum of tokens and states begins with their place, so that a row in another place does not pass.
"""

from __future__ import annotations

from zlib import crc32

from elman_server.sessions.session import Call, Session
from elman_server.sessions.snapshots import Snapshot

Row = tuple[object, ...]


def identity_of(session: Session) -> Row:
    """Return the values of a session that never change."""
    return (session.session_id, session.model, session.digest, session.seed, session.caller, session.created)


def place_checksum(session_id: str, number: int) -> int:
    """Return what the checksum of a segment or a snapshot begins with.

    Args:
        session_id: the session.
        number: number of the segment, or position of the snapshot.
    """
    return crc32(f"{session_id} {number}".encode())


def values_checksum(*values: object) -> int:
    """Return the checksum of a row of single values."""
    return crc32(repr(values).encode())


def session_row(session: Session) -> Row:
    """Return the row of a session without its key."""
    identity = identity_of(session)
    return (*identity, session.used, session.position, values_checksum(*identity))


def snapshot_row(key: int, session_id: str, snapshot: Snapshot) -> Row:
    """Return the row of a snapshot."""
    checksum = crc32(snapshot.state, place_checksum(session_id, snapshot.position))
    return (key, snapshot.position, snapshot.state, checksum)


def call_row(key: int, session_id: str, call: Call) -> Row:
    """Return the row of a call; it gets a new number, so that the latest call has the largest."""
    values = (
        call.request_id,
        call.fingerprint,
        call.start,
        call.prompt_count,
        call.generated_count,
        call.outcome,
        call.answer,
    )
    return (None, key, *values, values_checksum(session_id, *values))
