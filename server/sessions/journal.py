"""The way of changes into the store: in order, many in one transaction, off the event loop and off the model's thread.

While one transaction is being written the changes for the next one gather. Nobody is told of a change before the store
has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from server.sessions.errors import StoreError, StoreUnavailableError
from server.sessions.session import Change
from server.sessions.store import Store

_log = structlog.get_logger(__name__)

Done = Callable[[StoreError | None], None]


class Journal:
    """Writes changes into a store. Lives on one event loop.

    Args:
        store: where to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._gathered: list[tuple[Change, Done]] = []
        self._writer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def write(self, change: Change, done: Done) -> None:
        """Write a change when those before it are written.

        Args:
            change: what is to be kept.
            done: called on the event loop when it is kept, with None, or is not, with the reason.
        """
        if not self._store.blocks:
            self._tell([(change, done)], self._apply([change]))
            return
        self._gathered.append((change, done))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def written(self, change: Change) -> None:
        """Write a change; returns when it is kept.

        Raises:
            StoreError: it is not.
        """
        future: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()
        self.write(change, lambda error: None if future.cancelled() else future.set_result(error))
        error = await future
        if error is not None:
            raise error

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._gathered:
            written, self._gathered = self._gathered, []
            changes = [change for change, _ in written]
            self._tell(written, await loop.run_in_executor(self._thread, self._apply, changes))
        self._writer = None

    def _apply(self, changes: list[Change]) -> list[StoreError | None]:
        try:
            return self._store.apply(changes)
        except StoreError as error:
            _log.error("sessions not written", changes=len(changes), error=str(error))
            return [error] * len(changes)
        except Exception:
            _log.exception("sessions not written", changes=len(changes))
            return [StoreUnavailableError("the store of sessions has failed")] * len(changes)

    def _tell(self, written: list[tuple[Change, Done]], errors: list[StoreError | None]) -> None:
        for (change, done), error in zip(written, errors, strict=True):
            done(error)
            if error is not None:
                self._refuse(change.session_id, error)

    def _refuse(self, session_id: str, error: StoreError) -> None:
        """What gathered behind a change that is not kept is not to be kept, either."""
        refused = [done for change, done in self._gathered if change.session_id == session_id]
        self._gathered = [entry for entry in self._gathered if entry[0].session_id != session_id]
        for done in refused:
            done(error)

    async def close(self) -> None:
        """Return when everything is written."""
        if self._writer is not None:
            await self._writer
        self._thread.shutdown()
