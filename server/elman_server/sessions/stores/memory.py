"""The store in the memory of the server: sessions end with the server."""

from __future__ import annotations

from collections.abc import Sequence

from elman_server.errors import StoreError, StoreFullError
from elman_server.sessions.changes import Advance, Change, Create, Delete, Rewind
from elman_server.sessions.session import OBJECT_BYTES, Session
from elman_server.sessions.stores.interface import SoleOwner, Store, Summary, summarize
from elman_server.settings import Settings

_REMEDY = "Delete sessions, or raise --store-limit"


class MemoryStore(SoleOwner):
    """Keeps the session objects that it is given, so that the changes made to them need not be made twice; implements
    `Store`.

    Args:
        limit: approximate bytes that all sessions may take. What forks share counts for each of them.
    """

    blocks = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sessions: dict[str, Session] = {}
        self._sizes: dict[str, int] = {}  # bytes, by session id, as of the last change
        self._bytes = 0

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        return [self._apply(change) for change in changes]

    def _apply(self, change: Change) -> StoreError | None:
        if isinstance(change, Delete):
            self._sessions.pop(change.session_id, None)
            self._bytes -= self._sizes.pop(change.session_id, 0)
            return None
        session = change.session if isinstance(change, Create) else self._sessions.get(change.session_id)
        size = 0 if session is None else session.size
        if isinstance(change, Advance):
            size += change.size
        total = self._bytes + size - self._sizes.get(change.session_id, 0)
        if total > self._limit and not isinstance(change, Rewind):
            return StoreFullError(_REMEDY)
        if isinstance(change, Create):
            self._sessions[change.session_id] = change.session
        self._sizes[change.session_id], self._bytes = size, total
        return None

    def load(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def page(self, after: str, count: int) -> list[Summary]:
        ids = sorted(session_id for session_id in self._sessions if session_id > after)[:count]
        return [summarize(self._sessions[session_id]) for session_id in ids]

    def expired(self, before: float) -> list[str]:
        return [session.session_id for session in self._sessions.values() if session.used < before]

    def count(self, caller: str) -> int:
        return sum(session.caller == caller for session in self._sessions.values())

    def check(self) -> None:
        if self._bytes + OBJECT_BYTES > self._limit:
            raise StoreFullError(_REMEDY)

    def close(self) -> None:
        pass


def open_store(settings: Settings) -> Store:
    """Return a new store; see `STORE_KINDS`."""
    return MemoryStore(settings.store_bytes)
