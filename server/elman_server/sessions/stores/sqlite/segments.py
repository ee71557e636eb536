"""The segments that tokens are stored in, and their checksums."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from zlib import crc32

from elman_server.sessions.session import TOKEN_BYTES
from elman_server.sessions.stores.sqlite.database import Database
from elman_server.sessions.stores.sqlite.records import Row, place_checksum
from elman_server.sessions.stores.sqlite.schema import SEGMENT_CHECKSUM, SEGMENT_TOKENS

_CACHED_SESSIONS = 10_000


class SegmentWriter:
    """Makes the rows that append tokens. Caches the checksum of each session's last segment, which new tokens extend.

    Args:
        database: the file.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # By session id its position and the checksum of its last segment; the least recently used first.
        self._tails: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def rows(self, session_id: str, key: int, start: int, tokens: array[int]) -> list[Row]:
        """Return a row per segment that tokens extend: the new part, and the checksum of the whole segment.

        Args:
            session_id: the session.
            key: its key.
            start: position of the first token.
            tokens: the tokens.
        """
        rows: list[Row] = []
        done = 0
        while done < len(tokens):
            number, within = divmod(start + done, SEGMENT_TOKENS)
            part = tokens[done : done + SEGMENT_TOKENS - within].tobytes()
            before = self._tail(session_id, key, start + done) if within else place_checksum(session_id, number)
            checksum = crc32(part, before)
            rows.append((key, number, part, checksum))
            done += len(part) // TOKEN_BYTES
            self._cache(session_id, start + done, checksum)
        return rows

    def forget(self, session_id: str) -> None:
        """Drop a session from the cache."""
        self._tails.pop(session_id, None)

    def clear(self) -> None:
        """Drop all sessions from the cache."""
        self._tails.clear()

    def _tail(self, session_id: str, key: int, position: int) -> int:
        """Return the checksum of the segment that a position lies in, up to that position."""
        known = self._tails.get(session_id)
        if known is not None and known[0] == position:
            return known[1]
        # Read, not computed: a checksum computed from a damaged segment would hide the damage.
        number = position // SEGMENT_TOKENS
        row = self._database.execute(SEGMENT_CHECKSUM, key, number).fetchone()
        return int(row[0]) if row else place_checksum(session_id, number)

    def _cache(self, session_id: str, position: int, checksum: int) -> None:
        self._tails[session_id] = (position, checksum)
        self._tails.move_to_end(session_id)
        if len(self._tails) > _CACHED_SESSIONS:
            self._tails.popitem(last=False)
