"""The sessions in memory: loaded from the store when they are needed, dropped when they take too much memory.

A session in memory equals the one in the store. It is never dropped while a call has it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Container

from elman_server.errors import SessionNotFoundError
from elman_server.sessions.changes import Advance, Rewind
from elman_server.sessions.coalescing import Coalescer
from elman_server.sessions.session import Session
from elman_server.sessions.stores.interface import Store, ask, named_errors


class SessionCache:
    """The sessions in memory. Bound to one event loop.

    Args:
        store: the store that they come from.
        claimed: ids of the sessions that calls of this server have. No other server advances those.
        memory_bytes: approximate memory that unclaimed sessions may take.
    """

    def __init__(self, store: Store, claimed: Container[str], memory_bytes: int) -> None:
        self._store = store
        self._claimed = claimed
        self._memory_bytes = memory_bytes
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the least recently used first
        self._bytes = 0
        self._loading: dict[str, asyncio.Task[Session | None]] = {}
        self._outdated: set[str] = set()  # ids of sessions that have changed while they were loaded
        self._versions = Coalescer(store.versions)

    async def get(self, session_id: str) -> Session:
        """Return a session; the caller must not change it.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionDamagedError, StoreError: it cannot be loaded.
        """
        session = await self.find(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session

    async def find(self, session_id: str) -> Session | None:
        """Return a session, or None if there is no such session; the caller must not change it.

        Raises:
            SessionDamagedError, StoreError: it cannot be loaded.
        """
        if (session := self._current(session_id)) is not None:
            return session
        if not self._store.blocks:
            with named_errors():
                return self.put(self._store.load(session_id))
        if session_id in self._sessions and await self._is_current(self._sessions[session_id]):
            return self._sessions[session_id]
        if session_id not in self._loading:
            self._loading[session_id] = asyncio.get_running_loop().create_task(self._load(session_id))
        return await asyncio.shield(self._loading[session_id])

    def peek(self, session_id: str) -> Session | None:
        """Return a session if it is in memory. In a shared store it may have advanced."""
        return self._sessions.get(session_id)

    def put(self, session: Session | None) -> Session | None:
        """Add a session, in place of one with the same id; others may be dropped. Return the session."""
        if session is not None:
            self.drop(session.session_id)
            self._sessions[session.session_id] = session
            self._bytes += session.size
            self.trim(keep=session.session_id)
        return session

    def drop(self, session_id: str) -> None:
        """Drop a session from memory."""
        self._invalidate_load(session_id)
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._bytes -= session.size

    def apply(self, session: Session, change: Advance | Rewind) -> None:
        """Make a change to a session, after the store has made it."""
        self._invalidate_load(session.session_id)
        size = session.size
        change.apply(session)
        if self._sessions.get(session.session_id) is session:
            self._bytes += session.size - size

    def trim(self, keep: str = "") -> None:
        """Drop the least recently used sessions while they take too much memory.

        Args:
            keep: id of a session that stays.
        """
        if self._bytes <= self._memory_bytes:
            return
        for session_id in list(self._sessions):
            if self._bytes <= self._memory_bytes:
                return
            if session_id not in self._claimed and session_id != keep:
                self.drop(session_id)

    def _current(self, session_id: str) -> Session | None:
        """Return a session in memory if it is certain to equal the one in the store."""
        session = self._sessions.get(session_id)
        if session is None or (self._store.shared and session_id not in self._claimed):
            return None
        self._sessions.move_to_end(session_id)
        return session

    async def _is_current(self, session: Session) -> bool:
        """Return whether no other server has advanced a session since it was loaded."""
        version = session.version
        stored = await self._versions.request(session.session_id)
        return version == stored and self._sessions.get(session.session_id) is session

    async def _load(self, session_id: str) -> Session | None:
        try:
            while True:
                self._outdated.discard(session_id)
                loaded = await ask(self._store, self._store.load, session_id)
                if session_id in self._claimed and session_id in self._sessions:
                    return self._sessions[session_id]  # A call has loaded it meanwhile and continues it.
                if session_id not in self._outdated:
                    break
        finally:
            del self._loading[session_id]
            self._outdated.discard(session_id)
        if loaded is None:
            self.drop(session_id)
        return self.put(loaded)

    def _invalidate_load(self, session_id: str) -> None:
        """Have a session that is being loaded loaded again: what is read may precede a change."""
        if session_id in self._loading:
            self._outdated.add(session_id)
