"""The way of changes into the store: in order, many in one transaction, off the event loop and off the model's thread.

While one transaction is being written the changes for the next one gather. Nobody is told of a change before the store
has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from elman_server.errors import StoreError, StoreUnavailableError
from elman_server.sessions.session import Change
from elman_server.sessions.store import Store

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

    async def written(self, changes: Sequence[Change], kept: Callable[[Change], None]) -> None:
        """Write changes; returns when it is known of all of them whether they are kept, even if the caller has been
        cancelled meanwhile: who claims a session lets it go no sooner.

        Args:
            changes: in order; they go together.
            kept: called for each of them that is kept.

        Raises:
            StoreError: of the first that is not.
        """
        loop = asyncio.get_running_loop()
        outcomes = [loop.create_future() for _ in changes]

        def tell(change: Change, outcome: asyncio.Future[StoreError | None], error: StoreError | None) -> None:
            if error is None:
                kept(change)
            outcome.set_result(error)

        for change, outcome in zip(changes, outcomes, strict=True):
            self.write(change, partial(tell, change, outcome))
        cancelled: asyncio.CancelledError | None = None
        while not all(outcome.done() for outcome in outcomes):
            try:
                await asyncio.wait(outcomes)
            except asyncio.CancelledError as interruption:
                cancelled = interruption
        if cancelled is not None:
            raise cancelled
        errors = [error for outcome in outcomes if (error := outcome.result()) is not None]
        if errors:
            raise errors[0]

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._gathered:
                written, self._gathered = self._gathered, []
                changes = [change for change, _ in written]
                self._tell(written, await loop.run_in_executor(self._thread, self._apply, changes))
        finally:
            self._writer = None

    def _apply(self, changes: list[Change]) -> list[StoreError | None]:
        try:
            return self._store.apply(changes)
        except StoreError as error:
            _log.error("sessions not written", changes=len(changes), error=str(error))
            return [error] * len(changes)
        except Exception:
            _log.exception("sessions not written", changes=len(changes))
            if len(changes) == 1:
                return [StoreUnavailableError("the store of sessions has failed")]
        # A defect of ours, by one of them: the others are not to pay for it.
        return [error for change in changes for error in self._apply([change])]

    def _tell(self, written: list[tuple[Change, Done]], errors: list[StoreError | None]) -> None:
        for (change, done), error in zip(written, errors, strict=True):
            try:
                done(error)
            except Exception:
                _log.exception("after writing", session=change.session_id)
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
