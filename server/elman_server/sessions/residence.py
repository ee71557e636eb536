"""Which sessions are in memory, and who has which.

A session in memory is as the store has it. At most one call at a time has a session, on whatever server: here that is
known at once, among servers that share a store by a lease. Those that nobody has used for longest leave the memory when
it gets too much, and come back from the store when they are called. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

from elman_server.errors import (
    BundleMismatchError,
    SessionBusyError,
    SessionDamagedError,
    SessionElsewhereError,
    SessionError,
    SessionExistsError,
    SessionMovedError,
    SessionNotFoundError,
    StoreError,
)
from elman_server.sessions.gathering import Gathering
from elman_server.sessions.journal import Journal
from elman_server.sessions.reading import SessionModel
from elman_server.sessions.run import Run
from elman_server.sessions.session import Advance, Change, Create, Delete, Rewind, Session
from elman_server.sessions.store import Lease, Store

_RENEWAL = 1.5  # seconds between two renewals of leases; less than half of what they last
_PATIENCE = 10.0  # seconds for which a call waits for another server to let a session go, or to be found dead
_LEAST_WAIT, _MOST_WAIT = 0.02, 0.2  # seconds between two tries

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class Residence:
    """The sessions in memory, and the claims on them.

    Args:
        store: where they come from.
        journal: the way of changes into it.
        memory_bytes: about how much memory sessions may take that nobody is using.
    """

    def __init__(self, store: Store, journal: Journal, memory_bytes: int) -> None:
        self.journal = journal
        self._store = store
        self._memory_bytes = memory_bytes
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the least recently used first
        self._bytes = 0
        self._loading: dict[str, asyncio.Task[Session | None]] = {}
        self._outdated: set[str] = set()  # what is being loaded and has changed meanwhile
        self._busy: dict[str, _Claim] = {}
        self._fences: dict[str, int] = {}  # of the leases that are held
        self._versions = Gathering(store.versions)
        self._acquiring = Gathering(store.acquire)
        self._releasing = Gathering(store.release)
        self._renewal: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to renew leases."""
        if self._store.shared:
            self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def close(self) -> None:
        """Have everything written and let all leases go. No call may be under way."""
        await self.journal.close()
        if self._renewal is not None:
            self._renewal.cancel()
        await asyncio.gather(*self._tasks)

    # Where sessions are.

    async def ask(self, question: Callable[..., T], *given: Any) -> T:
        """Ask the store something, without keeping others waiting."""
        return await asyncio.to_thread(question, *given) if self._store.blocks else question(*given)

    async def get(self, session_id: str) -> Session:
        """A session as this server knows it. To be looked at only.

        Raises:
            SessionNotFoundError: there is none.
        """
        session = await self.find(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session

    async def find(self, session_id: str) -> Session | None:
        """The same, or None if there is none."""
        if (known := self._known(session_id)) is not None:
            return known
        if not self._store.blocks:
            return self.keep(self._store.load(session_id))
        if session_id in self._sessions and await self._is_current(self._sessions[session_id]):
            return self._sessions[session_id]
        if session_id not in self._loading:
            self._loading[session_id] = asyncio.get_running_loop().create_task(self._load(session_id))
        return await asyncio.shield(self._loading[session_id])

    def _known(self, session_id: str) -> Session | None:
        """A session in memory that is as the store has it, if that is certain."""
        session = self._sessions.get(session_id)
        if session is None or (self._store.shared and session_id not in self._busy):
            return None
        self._sessions.move_to_end(session_id)
        return session

    async def _is_current(self, session: Session) -> bool:
        """Whether what is in memory is as the store has it: another server may have advanced it since it was here."""
        version = session.version
        stored = await self._versions.answer(session.session_id)
        return version == stored and self._sessions.get(session.session_id) is session

    async def _load(self, session_id: str) -> Session | None:
        try:
            while True:
                self._outdated.discard(session_id)
                loaded = await asyncio.to_thread(self._store.load, session_id)
                if session_id in self._busy and session_id in self._sessions:
                    return self._sessions[session_id]  # Somebody was faster, and goes on with it.
                if session_id not in self._outdated:
                    break
        finally:
            del self._loading[session_id]
            self._outdated.discard(session_id)
        if loaded is None:
            self.forget(session_id)
        return self.keep(loaded)

    def keep(self, session: Session | None) -> Session | None:
        """Have a session in memory; others may have to leave it."""
        if session is not None:
            self.forget(session.session_id)
            self._sessions[session.session_id] = session
            self._bytes += session.size
            self._evict(but=session.session_id)
        return session

    def forget(self, session_id: str) -> None:
        """Have it in memory no more."""
        self._changed(session_id)
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._bytes -= session.size

    def take(self, session: Session, change: Advance | Rewind) -> None:
        """A session goes through a change that the store has."""
        self._changed(session.session_id)
        before = session.size
        session.take(change)
        if self._sessions.get(session.session_id) is session:
            self._bytes += session.size - before

    def _changed(self, session_id: str) -> None:
        """What is being loaded may be what was before."""
        if session_id in self._loading:
            self._outdated.add(session_id)

    def _evict(self, but: str = "") -> None:
        if self._bytes <= self._memory_bytes:
            return
        for session_id in list(self._sessions):
            if self._bytes <= self._memory_bytes:
                return
            if session_id not in self._busy and session_id != but:
                self.forget(session_id)

    async def suitable(self, session_id: str, model: SessionModel) -> Session:
        """A session of this model's very bundle."""
        session = await self.get(session_id)
        check_suits(session, model)
        return session

    async def write(
        self, changes: Sequence[Change], session: Session | None, made: Callable[[], None] = lambda: None
    ) -> None:
        """Have changes kept, and what is in memory go through them. A session of which something was not kept goes.

        Raises:
            StoreError: something was not kept.
        """

        def kept(change: Change) -> None:
            if isinstance(change, Create):
                made()
                self.keep(change.session)
            elif isinstance(change, Delete):
                self.forget(change.session_id)
            elif session is not None:
                self.take(session, change)

        try:
            await self.journal.written(changes, kept)
        except StoreError:
            if session is not None:
                self.forget(session.session_id)
            raise

    # Who has them.

    def is_busy(self, session_id: str) -> bool:
        """Whether a call of this server has it."""
        return session_id in self._busy

    def run_of(self, session_id: str) -> Run | None:
        """The generation that has it, if one has."""
        claim = self._busy.get(session_id)
        return claim.run if claim is not None else None

    @property
    def runs(self) -> list[Run]:
        """All generations on sessions."""
        return [claim.run for claim in self._busy.values() if claim.run is not None]

    async def turn(self, session_id: str) -> Run | None:
        """Wait for whoever has a session for a moment only: whose generation ends, or who reads something. Then a
        generation has it, or nobody, until the caller awaits something."""
        while (claim := self._busy.get(session_id)) is not None:
            if claim.run is not None and not claim.run.ending:
                return claim.run
            await (claim.changed.wait() if claim.run is None else claim.run.over.wait())
        return None

    async def claim(self, session_id: str) -> Session:
        """Have a session to oneself, until `release`; as the store has it then.

        Raises:
            SessionBusyError: somebody has it.
            SessionNotFoundError: there is none.
        """
        run = await self.turn(session_id)
        if run is not None:
            raise SessionBusyError(session_id, run.session.position)
        self._busy[session_id] = _Claim()
        try:
            return await (self._leased(session_id) if self._store.shared else self.get(session_id))
        except BaseException:
            self.release(session_id)
            raise

    async def _leased(self, session_id: str) -> Session:
        lease = await self.lease(session_id)
        self._fences[session_id] = lease.fence
        known = self._sessions.get(session_id)
        if known is None or known.version != lease.version:
            self.forget(session_id)
            known = self.keep(await self.ask(self._store.load, session_id))
            if known is None:
                raise SessionNotFoundError(session_id)
        known.fence = lease.fence
        return known

    async def lease(self, session_id: str) -> Lease:
        """A lease of a session; waits a while for whoever has it.

        Raises:
            SessionBusyError: they go on with it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while True:
            try:
                return await self._acquire(session_id)
            except SessionElsewhereError as error:
                if loop.time() >= deadline:
                    found = await self.ask(self._store.load, session_id)
                    position = found.position if found else 0
                    raise SessionBusyError(session_id, position, elsewhere=True) from error
                await asyncio.sleep(min(max(error.seconds, _LEAST_WAIT), _MOST_WAIT))

    async def _acquire(self, session_id: str) -> Lease:
        acquiring = asyncio.ensure_future(self._acquiring.answer(session_id))
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            self._do(self._give_back(session_id, acquiring))
            raise

    async def _give_back(self, session_id: str, acquiring: asyncio.Future[Lease]) -> None:
        """Let a lease go that comes too late for whoever wanted it."""
        await self._let_go(session_id, (await acquiring).fence)

    def give_to(self, run: Run) -> None:
        """A claimed session is a generation's from now on."""
        claim = self._busy[run.session.session_id]
        claim.run = run
        claim.changed.set()

    def release(self, session_id: str, *, failed: bool = False) -> None:
        """Have it no more.

        Args:
            session_id: which.
            failed: whether it may not be as the store has it.
        """
        claim = self._busy.pop(session_id, None)
        if claim is not None:
            claim.changed.set()
        if failed:
            self.forget(session_id)
        fence = self._fences.pop(session_id, None)
        if fence is not None:
            self._do(self._let_go(session_id, fence))
        self._evict()

    async def _let_go(self, session_id: str, fence: int) -> None:
        await self._releasing.answer((session_id, fence))

    @asynccontextmanager
    async def claimed(self, session_id: str) -> AsyncIterator[Session]:
        """`claim` and `release`."""
        claimed = await self.claim(session_id)
        try:
            yield claimed
        finally:
            self.release(session_id)

    @asynccontextmanager
    async def reserved(self, session_id: str) -> AsyncIterator[None]:
        """Have an id that no session has, for one to be made.

        Raises:
            SessionExistsError: one has it.
        """
        try:
            taken = self.is_busy(session_id) or await self.find(session_id) is not None or self.is_busy(session_id)
        except SessionDamagedError:
            taken = True
        if taken:
            raise SessionExistsError(session_id)
        self._busy[session_id] = _Claim()
        try:
            yield
        finally:
            self.release(session_id)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEWAL)
            if not self._fences:
                continue
            try:
                lost = await self.ask(self._store.renew, dict(self._fences))
            except Exception as error:  # Whatever it is: the next time may be better.
                _log.warning("leases not renewed", error=str(error))
                continue
            for session_id in lost:
                run = self.run_of(session_id)
                if run is not None:
                    run.stop(SessionMovedError(f"another server has session {session_id!r} now"))

    def _do(self, work: Any) -> None:
        """Have something done beside everything else."""
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Claim:
    """That a call has a session.

    Attributes:
        run: the generation that has it; None for something shorter.
        changed: set when it has become a generation's, or nobody's.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.changed = asyncio.Event()


def check_suits(session: Session, model: SessionModel) -> None:
    """Refuse another model than the session's.

    Raises:
        BundleMismatchError: it is another one, or of another bundle.
    """
    if session.model != model.name or session.digest != model.digest:
        subject = f"session {session.session_id!r}"
        raise BundleMismatchError(subject, session.model, session.digest, model.name, model.digest)


async def _logged(work: Any) -> None:
    try:
        await work
    except SessionError as error:
        _log.warning("store of sessions", error=str(error))
