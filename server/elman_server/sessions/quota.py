"""How many sessions a caller may have."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from elman_server.errors import SessionLimitError
from elman_server.sessions.stores.interface import Store, ask


class SessionQuota:
    """Counts the sessions of each caller: those in the store and those that are being created.

    Args:
        store: the store.
        per_caller: number of sessions that a caller may have; 0 for no limit.
    """

    def __init__(self, store: Store, per_caller: int) -> None:
        self._store = store
        self._limit = per_caller
        self._creating: Counter[str] = Counter()  # number of sessions by caller
        self._lock = asyncio.Lock()

    def locked(self) -> AbstractAsyncContextManager[None]:
        """Hold while a session passes from those that are being created to those in the store, so that no count misses
        it or counts it twice."""
        return self._lock if self._limit else nullcontext()

    @asynccontextmanager
    async def reserved(self, caller: str) -> AsyncIterator[Callable[[], None]]:
        """Count a session that is created in the block.

        Yields:
            A function to call when the store has the session.

        Raises:
            SessionLimitError: the caller has as many sessions as allowed.
        """
        async with self.locked():
            if self._limit:
                stored = await ask(self._store, self._store.count, caller)
                if stored + self._creating[caller] >= self._limit:
                    raise SessionLimitError(caller, self._limit)
            self._creating[caller] += 1
        is_counted = True

        def release() -> None:
            nonlocal is_counted
            if is_counted:
                is_counted = False
                self._creating[caller] -= 1
                if not self._creating[caller]:
                    del self._creating[caller]

        try:
            yield release
        finally:
            release()
