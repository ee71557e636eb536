"""Deletes sessions that have not been used for a time."""

from __future__ import annotations

import asyncio
import time

import structlog

from elman_server.errors import SessionError
from elman_server.sessions.changes import Delete
from elman_server.sessions.registry import SessionRegistry
from elman_server.sessions.stores.interface import ask

_MIN_INTERVAL, _MAX_INTERVAL = 1.0, 60.0  # seconds between two searches for expired sessions

_log = structlog.get_logger(__name__)


class SessionExpiry:
    """Deletes expired sessions, on the event loop of the registry.

    Args:
        registry: the sessions.
        time_to_live: seconds after its last use at which a session expires; 0 for never.
    """

    def __init__(self, registry: SessionRegistry, time_to_live: float) -> None:
        self._registry = registry
        self._time_to_live = time_to_live
        self._started = time.time() - time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to search for expired sessions."""
        if self._time_to_live:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()

    def _latest(self) -> float:
        """The time until which a session must have been used last to be expired, seconds since 1970. The system's clock
        may be set forward by years: what has really passed counts."""
        return min(time.time(), self._started + time.monotonic()) - self._time_to_live

    async def _run(self) -> None:
        store = self._registry.store
        while True:
            await asyncio.sleep(min(max(self._time_to_live / 4, _MIN_INTERVAL), _MAX_INTERVAL))
            try:
                expired = await ask(store, store.expired, self._latest())
            except SessionError as error:
                _log.warning("search for expired sessions failed", error=str(error))
                continue
            for session_id in expired:
                await self._delete(session_id)

    async def _delete(self, session_id: str) -> None:
        try:
            async with self._registry.claimed(session_id) as session:
                if session.used < self._latest():  # Not used since the search.
                    await self._registry.write([Delete(session_id, session.fence)], session)
                    _log.info("session expired", session_id=session_id)
        except SessionError as error:  # Another server has deleted it, or a call continues it.
            _log.info("session not expired", session_id=session_id, error=str(error))
