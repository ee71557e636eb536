"""Reads a session from the SQLite store, as far as it is undamaged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from elman_server.sessions.session import TOKEN_BYTES, TOKEN_TYPE, Call, Session, TokenLog
from elman_server.sessions.snapshots import Snapshot
from elman_server.sessions.stores.sqlite import schema
from elman_server.sessions.stores.sqlite.database import Database
from elman_server.sessions.stores.sqlite.records import place_checksum, values_checksum


@dataclass(frozen=True)
class StoredSession:
    """A session as it was read.

    Attributes:
        session: what is undamaged.
        position: its position according to its row.
        is_complete: whether all its tokens are undamaged.
    """

    session: Session
    position: int
    is_complete: bool


def read_session(database: Database, session_id: str) -> StoredSession | None:
    """Read a session; None if there is none.

    Raises:
        ValueError, TypeError, OverflowError: its own row is damaged.
    """
    row = database.execute(schema.SESSION, session_id).fetchone()
    if row is None:
        return None
    key, *identity, used, position, checksum = row
    session = Session(*row[1:8])
    if values_checksum(*identity) != checksum or not isinstance(used, float) or not isinstance(position, int):
        raise ValueError("the checksum does not match")
    session.tokens = TokenLog(_undamaged_tokens(session_id, database.execute(schema.SEGMENTS, key).fetchall()))
    is_complete = len(session.tokens) == position
    session.tokens.truncate(position)
    for at, state, checksum in database.execute(schema.SNAPSHOTS, key):
        # The checksum comes first: only if it matches, the position is certain to be a number.
        if (
            isinstance(state, bytes)
            and crc32(state, place_checksum(session_id, at)) == checksum
            and at <= session.position
        ):
            session.snapshots.append(Snapshot(at, state))
    for _, _, *values, checksum in database.execute(schema.CALLS, key):
        if values_checksum(session_id, *values) == checksum and (call := Call(*values)).end <= session.position:
            session.calls[call.request_id] = call
    return StoredSession(session, position, is_complete)


def _undamaged_tokens(session_id: str, segments: Iterable[tuple[int, Any, int]]) -> array[int]:
    """Return the tokens before the first segment that is missing, too short or damaged."""
    tokens = array(TOKEN_TYPE)
    for number, part, checksum in segments:
        if (
            not isinstance(part, bytes)
            or len(tokens) != number * schema.SEGMENT_TOKENS
            or crc32(part, place_checksum(session_id, number)) != checksum
            or len(part) % TOKEN_BYTES
        ):
            break
        tokens.frombytes(part)
    return tokens
