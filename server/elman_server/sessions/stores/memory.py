"""The store in the memory of the server: sessions end with the server."""

from __future__ import annotations

from collections.abc import Sequence

from elman_server.errors import StoreError
from elman_server.sessions.changes import Change, Create, Delete
from elman_server.sessions.session import Session
from elman_server.sessions.stores.interface import SoleOwner, Store, Summary, summarize
from elman_server.settings import Settings


class MemoryStore(SoleOwner):
    """Keeps the session objects that it is given, so that the changes made to them need not be made twice; implements
    `Store`."""

    blocks = False

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        for change in changes:
            if isinstance(change, Create):
                self._sessions[change.session_id] = change.session
            elif isinstance(change, Delete):
                self._sessions.pop(change.session_id, None)
        return [None] * len(changes)

    def load(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def page(self, after: str, count: int) -> list[Summary]:
        ids = sorted(session_id for session_id in self._sessions if session_id > after)[:count]
        return [summarize(self._sessions[session_id]) for session_id in ids]

    def expired(self, before: float) -> list[str]:
        return [session.session_id for session in self._sessions.values() if session.used < before]

    def count(self, caller: str) -> int:
        return sum(session.caller == caller for session in self._sessions.values())

    def close(self) -> None:
        pass


def open_store(_settings: Settings) -> Store:
    """Return a new store; see `STORE_KINDS`."""
    return MemoryStore()
