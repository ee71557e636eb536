"""Whether the store takes changes: noticed when it refuses one, and asked again until it takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from elman_server.errors import SessionError, StoreFullError, StoreUnavailableError
from elman_server.sessions.stores.interface import Store, ask

_INTERVAL = 2.0  # seconds between two questions


class StoreHealth:
    """Watches a store. Bound to one event loop.

    Args:
        store: the store.

    Attributes:
        on_change: called with whether it takes changes, when that has changed.
    """

    def __init__(self, store: Store) -> None:
        self.on_change: Callable[[bool], None] = lambda healthy: None
        self._store = store
        self._watching: asyncio.Task[None] | None = None

    def note(self, outcomes: Iterable[Exception | None]) -> None:
        """Take note of the outcomes of changes."""
        failed = any(isinstance(outcome, StoreFullError | StoreUnavailableError) for outcome in outcomes)
        if failed and self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Until the store takes changes again."""
        try:
            self.on_change(False)
            while not await self._takes_changes():  # noqa: ASYNC110 # Nothing tells when a disk has room again.
                await asyncio.sleep(_INTERVAL)
        finally:
            self._watching = None
        self.on_change(True)

    async def _takes_changes(self) -> bool:
        try:
            await ask(self._store, self._store.check)
        except SessionError:
            return False
        return True

    def stop(self) -> None:
        """Stop to watch."""
        if self._watching is not None:
            self._watching.cancel()
