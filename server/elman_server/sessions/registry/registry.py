"""The session registry: finds sessions, and gives each to at most one call at a time, on whatever server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from elman_server.errors import (
    SessionBusyError,
    SessionDamagedError,
    SessionExistsError,
    SessionMovedError,
    SessionNotFoundError,
    StoreError,
)
from elman_server.sessions.active_generation import ActiveGeneration
from elman_server.sessions.changes import Change, Create, Delete
from elman_server.sessions.health import StoreHealth
from elman_server.sessions.journal import Journal
from elman_server.sessions.model import SessionModel
from elman_server.sessions.registry.cache import SessionCache
from elman_server.sessions.registry.claims import Claims
from elman_server.sessions.registry.leases import Leases
from elman_server.sessions.session import Session
from elman_server.sessions.stores.interface import Store, ask


class SessionRegistry:
    """Finds, claims and changes sessions. Bound to one event loop.

    Args:
        store: the store of the sessions.
        memory_bytes: approximate memory that unclaimed sessions may take.

    Attributes:
        store: the store.
        health: whether it takes changes.
        journal: writes changes into it.
        claims: the claims of calls on sessions.
        leases: the leases of this server.
        cache: the sessions in memory.
    """

    def __init__(self, store: Store, memory_bytes: int) -> None:
        self.store = store
        self.health = StoreHealth(store)
        self.journal = Journal(store, self.health)
        self.claims = Claims()
        self.leases = Leases(store, self._stop_moved)
        self.cache = SessionCache(store, self.claims, memory_bytes)

    async def close(self) -> None:
        """Return when everything is written and all leases are released. No call may be running."""
        await self.journal.close()
        self.health.stop()
        await self.leases.close()

    async def get_for(self, model: SessionModel, session_id: str) -> Session:
        """Return a session of a model; the caller must not change it.

        Raises:
            SessionNotFoundError: there is no such session.
            BundleMismatchError: it belongs to another model or bundle.
        """
        session = await self.cache.get(session_id)
        model.check_owns(session)
        return session

    async def write(
        self, changes: Sequence[Change], session: Session | None, on_created: Callable[[], None] = lambda: None
    ) -> None:
        """Write changes of a session into the store, and make them in memory. If the store refuses one, the session is
        dropped from memory.

        Args:
            changes: the changes, in order.
            session: the session; None if it cannot be loaded.
            on_created: called when the store has created it.

        Raises:
            StoreError: the store has refused a change.
        """

        def make(change: Change) -> None:
            if isinstance(change, Create):
                on_created()
                self.cache.put(change.session)
            elif isinstance(change, Delete):
                self.cache.drop(change.session_id)
            elif session is not None:
                self.cache.apply(session, change)

        try:
            await self.journal.write_all(changes, make)
        except StoreError:
            if session is not None:
                self.cache.drop(session.session_id)
            raise

    async def claim(self, session_id: str) -> Session:
        """Claim a session until `release`; wait while it is read, or while a generation on it is ending.

        Returns:
            The session, equal to the one in the store.

        Raises:
            SessionBusyError: another call continues it.
            SessionNotFoundError: there is no such session.
        """
        generation = await self.claims.wait_for_short_calls(session_id)
        if generation is not None:
            raise SessionBusyError(session_id, generation.session.position)
        self.claims.add(session_id)
        try:
            return await (self._lease(session_id) if self.store.shared else self.cache.get(session_id))
        except BaseException:
            self.release(session_id)
            raise

    async def _lease(self, session_id: str) -> Session:
        lease = await self.leases.hold(session_id)
        session = self.cache.peek(session_id)
        if session is None or session.version != lease.version:
            self.cache.drop(session_id)
            session = self.cache.put(await ask(self.store, self.store.load, session_id))
            if session is None:
                raise SessionNotFoundError(session_id)
        session.fence = lease.fence
        return session

    def release(self, session_id: str, *, failed: bool = False) -> None:
        """Give up the claim on a session.

        Args:
            session_id: the session.
            failed: whether the session in memory may differ from the one in the store.
        """
        self.claims.remove(session_id)
        try:
            if failed:
                self.cache.drop(session_id)
        finally:
            self.leases.release(session_id)
        self.cache.trim()

    @asynccontextmanager
    async def claimed(self, session_id: str) -> AsyncIterator[Session]:
        """Claim a session for the duration of a block; see `claim`."""
        session = await self.claim(session_id)
        try:
            yield session
        finally:
            self.release(session_id)

    @asynccontextmanager
    async def reserved(self, session_id: str) -> AsyncIterator[None]:
        """Claim the id of a new session for the duration of a block.

        Raises:
            SessionExistsError: there is a session with that id.
        """
        claims = self.claims
        try:
            # Claimed before or after the search.
            taken = session_id in claims or await self.cache.find(session_id) is not None or session_id in claims
        except SessionDamagedError:
            taken = True
        if taken:
            raise SessionExistsError(session_id)
        claims.add(session_id)
        try:
            yield
        finally:
            self.release(session_id)

    def _stop_moved(self, session_id: str) -> None:
        generation: ActiveGeneration | None = self.claims.generation_of(session_id)
        if generation is not None:
            generation.stop(SessionMovedError(session_id))
