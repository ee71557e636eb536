"""The leases of this server: which sessions of a shared store it may advance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from elman_server.errors import SessionBusyError, SessionElsewhereError, SessionError
from elman_server.sessions.coalescing import Coalescer
from elman_server.sessions.stores.interface import Lease, Store, ask

_RENEWAL_SECONDS = 1.5  # between renewals; less than half of what a lease lasts
_WAIT_SECONDS = 10.0  # for another server to release a session, or for its lease to end
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.02, 0.2

_log = structlog.get_logger(__name__)


class Leases:
    """Acquires, renews and releases leases. Bound to one event loop.

    Args:
        store: the store that grants them.
        on_lost: called with the id of a session whose lease this server has lost.
    """

    def __init__(self, store: Store, on_lost: Callable[[str], None]) -> None:
        self._store = store
        self._on_lost = on_lost
        self._fences: dict[str, int] = {}  # of the leases that are held, by session id
        self._acquisitions = Coalescer(store.acquire)
        self._releases = Coalescer(store.release)
        self._renewal: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start to renew leases."""
        if self._store.shared:
            self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def close(self) -> None:
        """Return when all leases are released."""
        if self._renewal is not None:
            self._renewal.cancel()
        await asyncio.gather(*self._tasks)

    async def hold(self, session_id: str) -> Lease:
        """Acquire the lease of a session and renew it until `release`.

        Raises:
            SessionBusyError: another server continues the session.
            StoreError: the store has failed.
        """
        lease = await self.acquire(session_id)
        self._fences[session_id] = lease.fence
        return lease

    async def acquire(self, session_id: str) -> Lease:
        """Acquire the lease of a session; wait a while if another server holds it.

        Raises:
            SessionBusyError: another server continues the session.
            StoreError: the store has failed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _WAIT_SECONDS
        while True:
            try:
                return await self._acquire(session_id)
            except SessionElsewhereError as error:
                if loop.time() >= deadline:
                    session = await ask(self._store, self._store.load, session_id)
                    position = session.position if session else 0
                    raise SessionBusyError(session_id, position, elsewhere=True) from error
                await asyncio.sleep(min(max(error.seconds, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS))

    def release(self, session_id: str) -> None:
        """Release the lease of a session in the background, if this server holds it."""
        fence = self._fences.pop(session_id, None)
        if fence is not None:
            self._run_in_background(self._release(session_id, fence))

    async def _acquire(self, session_id: str) -> Lease:
        acquisition = asyncio.ensure_future(self._acquisitions.request(session_id))
        try:
            return await asyncio.shield(acquisition)
        except asyncio.CancelledError:
            self._run_in_background(self._release_acquired(session_id, acquisition))
            raise

    async def _release_acquired(self, session_id: str, acquisition: asyncio.Future[Lease]) -> None:
        """Release a lease that is granted after its caller was cancelled."""
        await self._release(session_id, (await acquisition).fence)

    async def _release(self, session_id: str, fence: int) -> None:
        await self._releases.request((session_id, fence))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEWAL_SECONDS)
            if not self._fences:
                continue
            try:
                lost = await ask(self._store, self._store.renew, dict(self._fences))
            except Exception as error:  # Of any kind: the next attempt may succeed.
                _log.warning("renewal failed", error=str(error))
                continue
            for session_id in lost:
                try:
                    self._on_lost(session_id)
                except Exception:
                    _log.exception("generation not stopped", session_id=session_id)

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_log_errors(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _log_errors(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except SessionError as error:
        _log.warning("release failed", error=str(error))
