"""The sessions of a server: creates, shows, copies, rewinds, exports and deletes them. `calls` continue them."""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from elman_server.errors import (
    PositionMismatchError,
    ServerDrainingError,
    SessionDamagedError,
    SessionExistsError,
    SessionNotFoundError,
    StoreConflictError,
)
from elman_server.sessions.answers import answers_before
from elman_server.sessions.calls import SessionGenerator, SessionReader
from elman_server.sessions.calls.forced_steps import read_tokens
from elman_server.sessions.changes import Create, Delete, Rewind
from elman_server.sessions.expiry import SessionExpiry
from elman_server.sessions.file import SessionFile
from elman_server.sessions.model import SessionModel
from elman_server.sessions.quota import SessionQuota
from elman_server.sessions.registry import SessionRegistry
from elman_server.sessions.session import Session
from elman_server.sessions.stores.interface import Store, Summary, ask


@dataclass(frozen=True)
class SessionOptions:
    """How sessions are kept.

    Attributes:
        memory_bytes: approximate memory that unclaimed sessions may take.
        time_to_live: seconds after its last use at which a session is deleted; 0 for never.
        per_caller: number of sessions that a caller may have; 0 for no limit.
        snapshot_steps: approximate number of steps between two snapshots; they are computed again after a crash.
    """

    memory_bytes: int
    time_to_live: float
    per_caller: int
    snapshot_steps: int


class Sessions:
    """Keeps sessions. Bound to one event loop.

    Args:
        store: the store; closed by `close`.
        options: how sessions are kept.

    Attributes:
        generator: runs calls that generate.
        reader: runs calls that read tokens.
    """

    def __init__(self, store: Store, options: SessionOptions) -> None:
        self._store = store
        self._snapshot_steps = options.snapshot_steps
        self._registry = SessionRegistry(store, options.memory_bytes)
        self._quota = SessionQuota(store, options.per_caller)
        self._expiry = SessionExpiry(self._registry, options.time_to_live)
        self.generator = SessionGenerator(self._registry, options.snapshot_steps)
        self.reader = SessionReader(self._registry, options.snapshot_steps)

    def start(self, on_health: Callable[[bool], None] = lambda healthy: None) -> None:
        """Start to renew leases and to delete expired sessions.

        Args:
            on_health: called with whether the store takes changes, when that has changed.
        """
        self._registry.health.on_change = on_health
        self._registry.leases.start()
        self._expiry.start()

    def hand_over(self) -> None:
        """Interrupt the generations that another server can continue when their clients repeat the calls."""
        if self._store.shared:
            for generation in self._registry.claims.generations():
                if generation.call.request_id:
                    generation.stop(ServerDrainingError())

    async def close(self) -> None:
        """Return when everything is written. No call may be running."""
        self._expiry.stop()
        await self._registry.close()
        self._store.close()

    async def create(
        self, model: SessionModel, session_id: str, tokens: array[int], *, seed: int | None, caller: str
    ) -> Session:
        """Create a session and read its first tokens.

        Args:
            model: its model.
            session_id: its id; "" for a random one.
            tokens: the tokens; may be empty.
            seed: None for a random one.
            caller: its owner.

        Raises:
            SessionExistsError: there is a session with that id.
            SessionLimitError: the caller has as many sessions as allowed.
            QueueFullError, ServerDrainingError, ModelFailedError: the tokens cannot be read.
        """
        now = time.time()
        seed = secrets.randbits(63) if seed is None else seed
        session = Session(_id_or_random(session_id), model.name, model.digest, seed, caller, now, now)
        async with self._reserved(session.session_id, caller) as on_created:
            if tokens:
                result = await read_tokens(
                    session, model, tokens, every_step=False, needs_outputs=False, snapshot_steps=self._snapshot_steps
                )
                session.tokens.extend(tokens)
                session.snapshots = result.snapshots
            return await self._add(session, on_created)

    async def fork(
        self,
        session_id: str,
        model: SessionModel,
        new_id: str,
        *,
        position: int | None,
        seed: int | None,
        caller: str,
    ) -> Session:
        """Create a session with the first tokens of another one. No step is computed.

        Args:
            session_id: the other session.
            model: its model.
            new_id: id of the new session; "" for a random one.
            position: number of tokens; None for all.
            seed: None for the seed of the other session.
            caller: the owner of the new session.

        Raises:
            SessionNotFoundError, BundleMismatchError: there is no such session of this model.
            SessionExistsError: there is a session with the new id.
            SessionLimitError: the caller has as many sessions as allowed.
            PositionMismatchError: the other session has fewer tokens.
        """
        async with self._reserved(new_id := _id_or_random(new_id), caller) as on_created:
            source = await self._registry.get_for(model, session_id)
            position = source.position if position is None else position
            _check_reaches(source, position)
            seed = source.seed if seed is None else seed
            fork = source.fork(new_id, position, position - model.lag, seed=seed, caller=caller, now=time.time())
            fork.calls = answers_before(source, position)
            return await self._add(fork, on_created)

    async def restore(
        self, file: SessionFile, model: SessionModel, session_id: str, *, longest: int, caller: str
    ) -> Session:
        """Create a session from a file.

        Args:
            file: the file.
            model: the model of the session.
            session_id: its id; "" for the id in the file.
            longest: see `SessionFile.session`.
            caller: its owner.

        Raises:
            SessionExistsError: there is a session with that id.
            SessionLimitError: the caller has as many sessions as allowed.
            BundleMismatchError: it belongs to another bundle.
            SessionFileError: the file does not fit the model.
        """
        now = time.time()
        session = file.session(model, session_id or file.session_id, longest=longest, caller=caller, now=now)
        async with self._reserved(session.session_id, caller) as on_created:
            return await self._add(session, on_created)

    async def frozen(self, session_id: str, model: SessionModel) -> Session:
        """Return a session as it is now, with the state that it continues from, to be written into a file.

        Raises:
            SessionNotFoundError, BundleMismatchError: there is no such session of this model.
        """
        session = await self._registry.get_for(model, session_id)
        end = session.position
        seed, caller, now = session.seed, session.caller, session.used
        frozen = session.fork(session_id, end, end - model.lag, seed=seed, caller=caller, now=now)
        frozen.calls = answers_before(session, end)
        return frozen

    async def get(self, session_id: str) -> Session:
        """Return a session as the store has it; the caller must not change it.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        return await self._registry.cache.get(session_id)

    async def model_of(self, session_id: str) -> str:
        """Return the name of the model of a session.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        return (await self.get(session_id)).model

    async def page(self, after: str, count: int) -> list[Summary]:
        """Return the first `count` sessions whose ids follow `after`, sorted by id."""
        return await ask(self._store, self._store.page, after, count)

    def is_running(self, session_id: str) -> bool:
        """Return whether a call of this server has a session."""
        return session_id in self._registry.claims

    async def delete(self, session_id: str) -> None:
        """Delete a session; a generation on it fails.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionBusyError: another server continues it.
        """
        registry = self._registry
        try:
            await registry.cache.get(session_id)
        except SessionDamagedError:  # Deleting it loses nothing and makes the id available again.
            lease = await registry.leases.acquire(session_id)
            await registry.write([Delete(session_id, lease.fence)], None)
            return
        while (generation := await registry.claims.wait_for_short_calls(session_id)) is not None:
            generation.stop(SessionNotFoundError(session_id, "the session has been deleted during this call"))
        async with registry.claimed(session_id) as session:
            await registry.write([Delete(session_id, session.fence)], session)

    async def rewind(self, session_id: str, model: SessionModel, position: int) -> Session:
        """Take a session back to an earlier position.

        Raises:
            SessionNotFoundError, BundleMismatchError: there is no such session of this model.
            SessionBusyError: a call continues it.
            PositionMismatchError: it has fewer tokens.
        """
        async with self._registry.claimed(session_id) as session:
            model.check_owns(session)
            _check_reaches(session, position)
            change = Rewind(session_id, position, position - model.lag, session.version + 1, session.fence)
            await self._registry.write([change], session)
        return session

    @asynccontextmanager
    async def _reserved(self, session_id: str, caller: str) -> AsyncIterator[Callable[[], None]]:
        """Reserve an id, and a place in the quota of the caller, for a session that is created in the block; see
        `SessionQuota.reserved`."""
        async with self._registry.reserved(session_id), self._quota.reserved(caller) as on_created:
            yield on_created

    async def _add(self, session: Session, on_created: Callable[[], None]) -> Session:
        # A time, so that no server takes an earlier session with this id that it has in memory for this one.
        session.version = time.time_ns() // 1000
        try:
            async with self._quota.locked():
                await self._registry.write([Create(session)], session, on_created)
        except StoreConflictError as error:
            raise SessionExistsError(session.session_id) from error
        return session


def _id_or_random(session_id: str) -> str:
    return session_id or secrets.token_hex(8)


def _check_reaches(session: Session, position: int) -> None:
    if not 0 <= position <= session.position:
        message = f"position: got {position}; session {session.session_id!r} reaches from 0 to {session.position}"
        raise PositionMismatchError(message, session.position)
