"""The loop: schedule -> run -> drop what was aborted meanwhile -> update and emit.

One thread per model runs it and owns the model's engine. What waits, who is let in and who is told is the same for all
models; what a turn does is up to those who hold the sequences that run, see `Running`. A failure belongs to one
sequence, never to its batch.

Nothing goes on beside a run: its threads use every core, and where they wait for the slowest, whoever took a core from
one of them would stop them all; where they do not, going on beside those who talk is no faster either. So a turn is
accounted for, and what it has brought is handed on, before the next one starts.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import structlog

from elman_server.errors import QueueFullError, ServerDrainingError
from elman_server.scheduling.running import INTERNAL, Deliver, Emission, Running
from elman_server.scheduling.sequence import (
    Beams,
    BeamsFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Sequence,
)

_PATIENCE = 0.01  # seconds for which those who run wait for those who keep coming
_CROWD_PATIENCE = 0.08  # the same where those who come are more: what would be run meanwhile is not worth a pause
_ENCODED_POSITIONS = 512  # of sources, about, that are read between two chunks of those who run

_log = structlog.get_logger(__name__)


class Scheduler:
    """Continuous batching of one model's sequences.

    Args:
        name: the model's, for the log.
        running: holds those that run; from `start` on only this scheduler's thread touches it.
        waiting_limit: how many sequences may wait for a slot.
        deliver: takes what a turn has brought, in order, which may be nothing; called on the scheduler's thread. It
            returns when those who talk to the callers have had a turn.
    """

    def __init__(self, name: str, running: Running, *, waiting_limit: int, deliver: Deliver) -> None:
        self._name = name
        self._running = running
        self._waiting_limit = waiting_limit
        self._deliver = deliver
        # Shared with callers, under the lock.
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._some_aborted = False
        self._stopped = False
        self._next_limit = np.inf  # the earliest time limit of those who wait
        self._thread = threading.Thread(target=self._loop, name=f"scheduler {name}", daemon=True)

    def start(self) -> None:
        """Begin to run what is submitted."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop; sequences that wait or run fail with ServerDrainingError. Returns when the thread ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def submit(self, sequence: Sequence, *, always: bool = False) -> None:
        """Queue a sequence.

        Args:
            sequence: what is to run.
            always: take it however many wait; for a part of what was let in before.

        Raises:
            QueueFullError: too many wait already.
            ServerDrainingError: the scheduler has been stopped.
        """
        with self._changed:
            if self._stopped:
                raise ServerDrainingError
            # Those who will have a slot at the next turn are not waiting for one.
            free = self._running.capacity - len(self._running)
            if not always and len(self._waiting) >= self._waiting_limit + free:
                raise QueueFullError(f"waiting request for {self._name!r}", self._waiting_limit)
            self._waiting.append(sequence)
            self._next_limit = min(self._next_limit, _time_limit(sequence))
            self._changed.notify()

    def abort(self, sequence: Sequence) -> None:
        """Let a sequence go; it gets no further event. Harmless after its end. Its slot is free after the turn that is
        under way."""
        with self._changed:
            sequence.aborted = self._some_aborted = True
            if sequence in self._waiting:
                self._waiting.remove(sequence)

    @property
    def slot_count(self) -> int:
        return self._running.capacity

    @property
    def waiting_limit(self) -> int:
        return self._waiting_limit

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def _loop(self) -> None:
        while self._wait_for_work():
            try:
                self._take_turn()
            except Exception:
                # A defect of ours: those who were running are told, and the server goes on.
                _log.exception("scheduling failed", model=self._name, running=len(self._running))
                self._running.fail(INTERNAL, self._tell)
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        self._running.fail(ServerDrainingError(), self._tell)
        self._tell([(sequence.receiver, Failed(ServerDrainingError())) for sequence in waiting])

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or len(self._running))
            return not self._stopped

    def _take_turn(self) -> None:
        if self._some_aborted:
            self._some_aborted = False
            self._running.drop_aborted()
        self._expire()
        self._admit()
        if len(self._running):
            self._running.take_turn(bool(self._waiting), self._tell, self._is_interrupted)

    def _is_interrupted(self) -> bool:
        """Whether those who run are to be left for a moment: somebody goes, or comes and can be let in, or has waited
        too long."""
        if self._some_aborted or self._stopped:
            return True
        return bool(self._waiting) and (self._running.free > 0 or time.perf_counter() >= self._next_limit)

    def _expire(self) -> None:
        """End those whose time is up before they had a slot."""
        now = time.perf_counter()
        if now < self._next_limit:
            return
        with self._changed:
            expired = [sequence for sequence in self._waiting if _time_limit(sequence) <= now]
            self._waiting = deque(sequence for sequence in self._waiting if _time_limit(sequence) > now)
            self._next_limit = min(map(_time_limit, self._waiting), default=np.inf)
        emissions: list[Emission] = []
        for sequence in expired:
            sequence.ended, sequence.begun = True, now
            emissions.append((sequence.receiver, _expired(sequence)))
        self._tell(emissions)

    def _admit(self) -> None:
        """Give free slots to those who wait, first come first served, and to those who come with them: what takes up a
        call needs the cores, too, and who begins together shares the run that reads the sources, and every run of a
        prompt."""
        began, seen = time.perf_counter(), 0
        while self._gathers(seen):
            seen = len(self._waiting)
            patience = _CROWD_PATIENCE if seen > len(self._running) else _PATIENCE
            if time.perf_counter() >= began + patience:
                break
            self._deliver([])
        self._running.admit(self._newcomers(), self._tell)

    def _gathers(self, seen: int) -> bool:
        """Whether others may come with those who get a slot now: there are slots for more, and at the last look fewer
        waited."""
        with self._changed:
            free = self._running.free
            return seen < len(self._waiting) < free and self._waiting[0].row_count <= free

    def _newcomers(self) -> list[Sequence]:
        """Those who get a slot now."""
        newcomers: list[Sequence] = []
        free = self._running.free
        # Those who run wait while sources are read.
        positions = _ENCODED_POSITIONS if len(self._running) else np.inf
        while free > 0 and positions > 0:
            with self._changed:
                if not self._waiting:
                    break
                free -= self._waiting[0].row_count
                if free < 0:
                    break
                sequence = self._waiting.popleft()
            sequence.begun = time.perf_counter()
            if sequence.source is not None and sequence.source.encoded is None:
                positions -= len(sequence.source.values)
            newcomers.append(sequence)
        return newcomers

    def _tell(self, emissions: list[Emission]) -> None:
        if emissions:  # Where there is nothing to tell, nobody's turn is waited for.
            self._deliver(emissions)


def _time_limit(sequence: Sequence) -> float:
    """When it ends with what there is, by `time.perf_counter`."""
    if isinstance(sequence, Generation | Beams) and sequence.time_limit is not None:
        return sequence.time_limit
    return np.inf


def _expired(sequence: Sequence) -> Event:
    """The end of one for which no step has been taken."""
    if isinstance(sequence, Beams):
        return BeamsFinished((), cut_short=True, step_count=0, begun=sequence.begun)
    return Finished(FinishReason.TIME_LIMIT, sequence.position, begun=sequence.begun)
