"""A generation on a session while it runs: from the scheduler's events through the journal to its subscribers.

    scheduler -> ActiveGeneration.receive -> journal -> the store has it -> the session in memory -> subscribers

A subscriber never receives a token that the store does not have. There can be several: a client that has lost its
connection repeats its call while the server has not noticed the loss. Without subscribers, the generation is
interrupted where it is; it can be continued from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import Callable
from functools import partial

import structlog

from elman_server.engine import Arrays
from elman_server.errors import StoreError, StoreUnavailableError
from elman_server.scheduling import (
    CUT,
    INTERNAL,
    Event,
    Failed,
    Finished,
    Generation,
    Receiver,
    Scheduler,
    Snapshot,
    Tokens,
)
from elman_server.sessions.answers import AnswerContext, Answers
from elman_server.sessions.changes import Advance
from elman_server.sessions.journal import Journal
from elman_server.sessions.session import TOKEN_TYPE, Call, Session
from elman_server.sessions.snapshots import Snapshot as PackedSnapshot
from elman_server.sessions.snapshots import superseded_positions
from elman_server.sessions.state_layout import StateLayout
from elman_server.sessions.stores.interface import STORE_FAILED

_log = structlog.get_logger(__name__)


class ActiveGeneration:
    """A running generation; implements the scheduler's `Receiver`.

    Args:
        session: the session.
        call: the call so far.
        journal: writes the changes.
        layout: layout of the model's state.
        on_written: makes a change to the session in memory, after the store has made it.
        on_finished: called when the last change is written, with whether a write has failed.
        context: what precedes the text of its answer.
        answers: where the answers of the session began, with its own.
        can_continue: whether its own is the last of them.

    Attributes:
        session: the session.
        call: the call as the store has it.
        context: as given.
        finished: set when the last change is written.
    """

    def __init__(
        self,
        session: Session,
        call: Call,
        *,
        journal: Journal,
        layout: StateLayout,
        on_written: Callable[[Session, Advance], None],
        on_finished: Callable[[bool], None],
        context: AnswerContext,
        answers: Answers,
        can_continue: bool,
    ) -> None:
        self.session = session
        self.call = call
        self.context = context
        self.finished = asyncio.Event()
        self._submitted_call = call  # as it will be when every change is written
        self._position = session.position
        self._version = session.version
        self._journal = journal
        self._layout = layout
        self._on_written = on_written
        self._on_finished = on_finished
        self._answers = answers
        self._can_continue = can_continue
        self._unwritten_answers = answers.change_of(session)
        self._subscribers: list[Receiver] = []
        self._behind: set[Receiver] = set()  # the subscribers that are far behind
        self._abort: Callable[[], None] = lambda: None
        self._set_paused: Callable[[bool], None] = lambda paused: None
        self._prompt = array(TOKEN_TYPE)  # until it is written
        self._unwritten_count = 0
        self._last: Event | None = None  # the event that subscribers receive at the end
        self._is_ending = False
        self._write_failed = False

    def start(self, scheduler: Scheduler, generation: Generation, prompt: array[int]) -> None:
        """Submit the generation. The prompt is written together with its first result, so that a call without results
        leaves no trace.

        Args:
            scheduler: the scheduler of the model.
            generation: what it runs.
            prompt: the new tokens of the call.

        Raises:
            QueueFullError, ServerDrainingError: it is refused; nothing has changed.
        """
        scheduler.submit(generation)
        self._abort = partial(scheduler.abort, generation)
        self._set_paused = partial(scheduler.set_paused, generation)
        self._prompt = prompt

    @property
    def is_ending(self) -> bool:
        """Whether the scheduler has nothing more for it. Changes may still be unwritten."""
        return self._is_ending

    def subscribe(self, subscriber: Receiver) -> None:
        """Deliver the tokens that are written, and all further events."""
        self._subscribers.append(subscriber)
        if self._behind:
            self._pause_or_resume()
        generated = self.session.generated(self.call)
        if generated:
            subscriber.receive(Tokens(tuple(generated)))

    def unsubscribe(self, subscriber: Receiver) -> None:
        """Deliver no more events. Has no effect after the end."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)
            self._behind.discard(subscriber)
            if self._behind:
                self._pause_or_resume()
            if not self._subscribers and not self._is_ending:
                self._interrupt()

    def set_paused(self, subscriber: Receiver, paused: bool) -> None:
        """A subscriber is far behind, or is not any more. While all of them are, the generation is paused."""
        (self._behind.add if paused else self._behind.discard)(subscriber)
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        self._set_paused(bool(self._subscribers) and self._behind.issuperset(self._subscribers))

    def stop(self, error: Exception) -> None:
        """Interrupt the generation; subscribers receive the error."""
        if not self._is_ending:
            self._last = Failed(error)
            self._interrupt()

    def _interrupt(self) -> None:
        self._is_ending = True
        self._abort()
        self._finish_if_written()

    def receive(self, event: Event) -> None:
        if self._is_ending:
            return
        try:
            self._take(event)
        except Exception:
            _log.exception("session not advanced", session_id=self.session.session_id)
            self._last = Failed(INTERNAL)
            self._interrupt()

    def _take(self, event: Event) -> None:
        if isinstance(event, Tokens):
            self._submitted_call = self._submitted_call.advanced(len(event.ids))
            self._write(array(TOKEN_TYPE, event.ids), None, event)
        elif isinstance(event, Snapshot):
            self._write(array(TOKEN_TYPE), self._packed(event.position, event.state))
        elif isinstance(event, Finished):
            self._is_ending = True
            self._last = event
            self._submitted_call = self._submitted_call.advanced(0, event.reason.value)
            # There is no state if no step has been taken.
            snapshot = None if event.state is None else self._packed(event.position, event.state)
            self._write(array(TOKEN_TYPE), snapshot)
            if self._can_continue and event.reason not in CUT:
                self._write_answers(self._answers.ended(self._position).to_call())
        else:
            self._is_ending = True
            self._last = event
            self._finish_if_written()

    def _packed(self, position: int, state: Arrays) -> PackedSnapshot:
        return PackedSnapshot(position, self._layout.pack(state))

    def _write(self, tokens: array[int], snapshot: PackedSnapshot | None, event: Event | None = None) -> None:
        """Write a change.

        Args:
            tokens: the generated tokens of the change.
            snapshot: the state to keep.
            event: what subscribers receive when the change is written.
        """
        answers, self._unwritten_answers = self._unwritten_answers, None
        if answers is not None:  # Before the tokens: without them it says nothing.
            self._write_answers(answers)
        dropped = () if snapshot is None else tuple(superseded_positions(self.session.snapshots, snapshot))
        tokens, self._prompt = self._prompt + tokens, array(TOKEN_TYPE)
        call = self._submitted_call
        self._version += 1
        change = Advance(
            self.session.session_id,
            self._position,
            time.time(),
            tokens,
            call if call.request_id else None,
            snapshot,
            dropped,
            self._version,
            self.session.fence,
        )
        self._position += len(tokens)
        self._write_change(change, call, event)

    def _write_answers(self, answers: Call) -> None:
        self._version += 1
        change = Advance(
            self.session.session_id,
            self._position,
            time.time(),
            call=answers,
            version=self._version,
            fence=self.session.fence,
        )
        self._write_change(change, None, None)

    def _write_change(self, change: Advance, call: Call | None, event: Event | None) -> None:
        self._unwritten_count += 1
        try:
            self._journal.write(change, partial(self._take_outcome, change, call, event))
        except BaseException:
            self._unwritten_count -= 1
            raise

    def _take_outcome(self, change: Advance, call: Call | None, event: Event | None, error: StoreError | None) -> None:
        self._unwritten_count -= 1
        if not self._write_failed:
            error = error or self._advance(change)
            if error is not None:
                self._write_failed = self._is_ending = True
                self._last = Failed(error)
                self._abort()
            else:
                self.call = call or self.call
                if event is not None:
                    self._deliver(event)
        self._finish_if_written()

    def _advance(self, change: Advance) -> StoreError | None:
        """Advance the session in memory after the store; returns why that failed."""
        try:
            self._on_written(self.session, change)
        except Exception:  # What the store has is loaded again.
            _log.exception("session in memory not advanced", session_id=change.session_id)
            return StoreUnavailableError(STORE_FAILED)
        return None

    def _finish_if_written(self) -> None:
        """Deliver the last event when the generation is ending and every change is written."""
        if not self._is_ending or self._unwritten_count or self.finished.is_set():
            return
        self.finished.set()
        try:
            self._on_finished(self._write_failed)
        finally:
            if self._last is not None:
                self._deliver(self._last)

    def _deliver(self, event: Event) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber.receive(event)
            except Exception:  # The others receive it nevertheless.
                _log.exception("event not received", kind=type(event).__name__)
                with contextlib.suppress(Exception):
                    subscriber.receive(Failed(INTERNAL))
                self.unsubscribe(subscriber)
