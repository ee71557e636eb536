"""The sessions of a server: what makes them, looks at them, takes them back, forgets them; `Calls` continue them.

Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import structlog

from elman_server.errors import (
    PositionMismatchError,
    ServerDrainingError,
    SessionDamagedError,
    SessionError,
    SessionExistsError,
    SessionLimitError,
    SessionNotFoundError,
    StoreConflictError,
)
from elman_server.sessions.calls import Calls
from elman_server.sessions.file import SessionFile, write_file
from elman_server.sessions.journal import Journal
from elman_server.sessions.reading import SessionModel, beginning, read
from elman_server.sessions.residence import Residence, check_suits
from elman_server.sessions.session import Create, Delete, Rewind, Session
from elman_server.sessions.store import Store, Summary

_LEAST_SWEEP, _MOST_SWEEP = 1.0, 60.0  # seconds between two looks for sessions whose time is over

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SessionOptions:
    """How sessions are kept.

    Attributes:
        memory_bytes: about how much memory sessions may take that nobody is using.
        time_to_live: seconds after which a session that nobody has used is deleted; 0: never.
        per_caller: how many sessions one caller may have; 0: as many as they like.
        snapshot_steps: after so many steps, about, the state is kept: what is computed again after a crash.
    """

    memory_bytes: int
    time_to_live: float
    per_caller: int
    snapshot_steps: int


class Sessions:
    """Keeps sessions.

    Args:
        store: where they are kept.
        options: how.

    Attributes:
        calls: what continues them.
    """

    def __init__(self, store: Store, options: SessionOptions) -> None:
        self._store = store
        self._options = options
        self._residence = Residence(store, Journal(store), options.memory_bytes)
        self.calls = Calls(self._residence, options.snapshot_steps)
        # Of the callers of sessions that are being made; under the lock they and those in the store are all there are.
        self._making: Counter[str] = Counter()
        self._counting = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew leases and to delete sessions whose time is over."""
        self._residence.start()
        if self._options.time_to_live:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def hand_over(self) -> None:
        """Break off what can be continued by another server, which it will be if its client comes again."""
        if self._store.shared:
            for run in self._residence.runs:
                if run.call.request_id:
                    run.stop(ServerDrainingError())

    async def close(self) -> None:
        """Return when everything is written. No call may be under way."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._residence.close()
        self._store.close()

    # What makes sessions, and what looks at them.

    async def create(
        self, model: SessionModel, session_id: str, tokens: array[int], *, seed: int | None, caller: str
    ) -> Session:
        """A new session that holds some tokens, read already.

        Args:
            model: its model.
            session_id: its id; "" for a random one.
            tokens: may be none.
            seed: None for a random one.
            caller: whose it is.

        Raises:
            SessionExistsError: there is one of that id.
            SessionLimitError: the caller has as many as they may.
            QueueFullError, ServerDrainingError, ModelFailedError: the prompt has not been read.
        """
        now = time.time()
        seed = secrets.randbits(63) if seed is None else seed
        session = Session(_new(session_id), model.name, model.digest, seed, caller, now, now)
        async with self._reserved(session.session_id, caller) as made:
            if tokens:
                steps = self._options.snapshot_steps
                found = await read(session, model, tokens, every_step=False, shown=False, snapshot_steps=steps)
                session.tokens.extend(tokens)
                session.snapshots = found.snapshots
            return await self._add(session, made)

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
        """A new session that holds what another one holds; nothing is computed again.

        Raises:
            SessionNotFoundError, SessionExistsError, SessionLimitError, BundleMismatchError: see there.
            PositionMismatchError: the other one does not reach so far.
        """
        async with self._reserved(new := _new(new_id), caller) as made:
            source = await self._residence.suitable(session_id, model)
            position = source.position if position is None else position
            _check_reaches(source, position)
            seed = source.seed if seed is None else seed
            return await self._add(
                source.forked(new, position, position - model.lag, seed=seed, caller=caller, now=time.time()), made
            )

    async def restore(
        self, file: SessionFile, model: SessionModel, session_id: str, *, longest: int, caller: str
    ) -> Session:
        """A new session from a file. See `SessionFile.session`.

        Raises:
            SessionExistsError, SessionLimitError, BundleMismatchError: see there.
            SessionFileError: its state is not one of this model.
        """
        now = time.time()
        session = file.session(model, session_id or file.session_id, longest=longest, caller=caller, now=now)
        async with self._reserved(session.session_id, caller) as made:
            return await self._add(session, made)

    async def export(self, session_id: str, model: SessionModel) -> bytes:
        """A session as a file.

        Raises:
            SessionNotFoundError, BundleMismatchError: see there.
        """
        session = await self._residence.suitable(session_id, model)
        return write_file(session, beginning(session, model), model)

    async def get(self, session_id: str) -> Session:
        """A session as the store has it. To be looked at only.

        Raises:
            SessionNotFoundError: there is none.
        """
        return await self._residence.get(session_id)

    async def model_of(self, session_id: str) -> str:
        """The name of the model that a session is of.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        return (await self.get(session_id)).model

    async def page(self, after: str, count: int) -> list[Summary]:
        """The first `count` sessions whose ids come after `after`."""
        return await self._residence.ask(self._store.page, after, count)

    def is_running(self, session_id: str) -> bool:
        """Whether a call is under way on it, on this server."""
        return self._residence.is_busy(session_id)

    async def delete(self, session_id: str) -> None:
        """Forget a session; a generation on it is told so.

        Raises:
            SessionNotFoundError: there is none.
            SessionBusyError: a call is under way that cannot be broken off.
        """
        residence = self._residence
        try:
            await residence.get(session_id)
        except SessionDamagedError:  # There is nothing that could be harmed, and the id may be wanted.
            await self._residence.write([Delete(session_id, (await residence.lease(session_id)).fence)], None)
            return
        while (run := await residence.turn(session_id)) is not None:
            run.stop(SessionNotFoundError(session_id, "the session has been deleted during this call"))
        async with residence.claimed(session_id) as session:
            await residence.write([Delete(session_id, session.fence)], session)

    async def rewind(self, session_id: str, model: SessionModel, position: int) -> Session:
        """Take a session back.

        Raises:
            SessionNotFoundError, BundleMismatchError, SessionBusyError: see there.
            PositionMismatchError: it does not reach so far.
        """
        async with self._residence.claimed(session_id) as session:
            check_suits(session, model)
            _check_reaches(session, position)
            change = Rewind(session_id, position, position - model.lag, session.version + 1, session.fence)
            await self._residence.write([change], session)
        return session

    @asynccontextmanager
    async def _reserved(self, session_id: str, caller: str) -> AsyncIterator[Callable[[], None]]:
        """Have an id for a new session, if the caller may have one; what is given is to be called when the store has
        it."""
        counted = True

        def made() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._made(caller)

        async with self._residence.reserved(session_id):
            await self._count(caller)
            try:
                yield made
            finally:
                made()

    async def _count(self, caller: str) -> None:
        """Count a session that is to be made."""
        limit = self._options.per_caller
        async with self._counting if limit else nullcontext():
            if limit and await self._residence.ask(self._store.count, caller) + self._making[caller] >= limit:
                raise SessionLimitError(caller, limit)
            self._making[caller] += 1

    def _made(self, caller: str) -> None:
        """A session that was being made is in the store, or will never be."""
        self._making[caller] -= 1
        if not self._making[caller]:
            del self._making[caller]

    async def _add(self, session: Session, made: Callable[[], None]) -> Session:
        # So that no server that has had another one of this id in memory takes it for that one.
        session.version = time.time_ns() // 1000
        try:
            async with self._counting if self._options.per_caller else nullcontext():
                await self._residence.write([Create(session)], session, made)
        except StoreConflictError as error:
            raise SessionExistsError(session.session_id) from error
        return session

    async def _sweep(self) -> None:
        live = self._options.time_to_live
        while True:
            await asyncio.sleep(min(max(live / 4, _LEAST_SWEEP), _MOST_SWEEP))
            try:
                expired = await self._residence.ask(self._store.expired, time.time() - live)
            except SessionError as error:
                _log.warning("sessions not swept", error=str(error))
                continue
            for session_id in expired:
                await self._expire(session_id)

    async def _expire(self, session_id: str) -> None:
        try:
            async with self._residence.claimed(session_id) as session:
                if session.used < time.time() - self._options.time_to_live:  # Nobody has used it since we looked.
                    await self._residence.write([Delete(session_id, session.fence)], session)
                    _log.info("session expired", session=session_id)
        except SessionError as error:  # Another server was faster, or somebody uses it again.
            _log.info("session not expired", session=session_id, error=str(error))


def _new(session_id: str) -> str:
    return session_id or secrets.token_hex(8)


def _check_reaches(session: Session, position: int) -> None:
    if not 0 <= position <= session.position:
        message = f"position: got {position}; session {session.session_id!r} reaches from 0 to {session.position}"
        raise PositionMismatchError(message, session.position)
