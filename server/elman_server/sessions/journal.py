"""Writes changes into the store: in order, many in one transaction, off the event loop and off the model's thread.

While one transaction is being written, the changes for the next one are collected. The outcome of a change is reported
when the store has it, never before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from elman_server.errors import StoreError, StoreUnavailableError
from elman_server.sessions.changes import Change
from elman_server.sessions.health import StoreHealth
from elman_server.sessions.isolation import send_isolated
from elman_server.sessions.stores.interface import STORE_FAILED, Store

_log = structlog.get_logger(__name__)

# Called on the event loop with the outcome of a change: None if the store has it, otherwise the reason why not.
OnOutcome = Callable[[StoreError | None], None]


class Journal:
    """Writes changes into a store. Bound to one event loop.

    Args:
        store: the store.
        health: takes note of the outcomes.
    """

    def __init__(self, store: Store, health: StoreHealth) -> None:
        self._store = store
        self._health = health
        self._pending: list[tuple[Change, OnOutcome]] = []
        self._writer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def write(self, change: Change, on_outcome: OnOutcome) -> None:
        """Write a change after those before it.

        Args:
            change: the change.
            on_outcome: called once the outcome is known.
        """
        if not self._store.blocks:
            self._report([(change, on_outcome)], self._apply([change]))
            return
        self._pending.append((change, on_outcome))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_pending())

    async def write_all(self, changes: Sequence[Change], on_written: Callable[[Change], None]) -> None:
        """Write changes. Returns when the outcome of all is known, even if the caller is cancelled meanwhile: the
        caller must not release its session before.

        Args:
            changes: the changes, in order.
            on_written: called for each change that the store has.

        Raises:
            StoreError: the reason why the first of those that the store does not have was refused.
        """
        loop = asyncio.get_running_loop()
        outcomes = [loop.create_future() for _ in changes]

        def report(change: Change, outcome: asyncio.Future[StoreError | None], error: StoreError | None) -> None:
            try:
                if error is None:
                    on_written(change)
            except Exception:  # The store has it, and nothing is known of what is in memory.
                _log.exception("outcome not noted", session_id=change.session_id)
                error = StoreUnavailableError(STORE_FAILED)
            outcome.set_result(error)

        for change, outcome in zip(changes, outcomes, strict=True):
            self.write(change, partial(report, change, outcome))
        cancellation: asyncio.CancelledError | None = None
        while not all(outcome.done() for outcome in outcomes):
            try:
                await asyncio.wait(outcomes)
            except asyncio.CancelledError as interruption:
                cancellation = interruption
        if cancellation is not None:
            raise cancellation
        errors = [error for outcome in outcomes if (error := outcome.result()) is not None]
        if errors:
            raise errors[0]

    async def _write_pending(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                changes = [change for change, _ in batch]
                errors: Sequence[StoreError | None]
                try:
                    errors = await loop.run_in_executor(self._thread, self._apply, changes)
                except Exception:
                    _log.exception("write failed", change_count=len(changes))
                    errors = [StoreUnavailableError(STORE_FAILED)] * len(changes)
                self._report(batch, errors)
        finally:
            self._writer = None

    def _apply(self, changes: Sequence[Change]) -> Sequence[StoreError | None]:
        return send_isolated(self._send, changes, StoreError)

    def _send(self, changes: Sequence[Change]) -> list[StoreError | None]:
        try:
            return self._store.apply(changes)
        except StoreError as error:
            _log.error("write failed", change_count=len(changes), error=str(error))
            raise

    def _report(self, batch: list[tuple[Change, OnOutcome]], errors: Sequence[StoreError | None]) -> None:
        try:
            self._health.note(errors)
        except Exception:
            _log.exception("outcomes not noted")
        for (change, on_outcome), error in zip(batch, errors, strict=True):
            _report_one(change, on_outcome, error)
            if error is not None:
                self._refuse_following(change.session_id, error)

    def _refuse_following(self, session_id: str, error: StoreError) -> None:
        """Refuse the pending changes of a session after one that was refused."""
        refused = [entry for entry in self._pending if entry[0].session_id == session_id]
        self._pending = [entry for entry in self._pending if entry[0].session_id != session_id]
        for change, on_outcome in refused:
            _report_one(change, on_outcome, error)

    async def close(self) -> None:
        """Return when everything is written."""
        if self._writer is not None:
            await self._writer
        self._thread.shutdown()


def _report_one(change: Change, on_outcome: OnOutcome, error: StoreError | None) -> None:
    try:
        on_outcome(error)
    except Exception:
        _log.exception("outcome not reported", session_id=change.session_id)
