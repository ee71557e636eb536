"""Admission: which sequences have slots, which wait for one, and which are preempted.

    submit -> waiting -> running -> finished
                 ^          |
                 |          +-> preempted: waiting again, or paused while its client does not read
                 +----------+

Callers submit, abort and pause on any thread, under the lock. The rest is done by the thread of the loop.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection
from concurrent.futures import Future
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np

from elman_server.errors import QueueFullError, ServerDrainingError
from elman_server.scheduling.events import BeamsFinished, Event, Failed, Finished, FinishReason, Receiver
from elman_server.scheduling.interface import INTERNAL, Emission, RunningBatch
from elman_server.scheduling.isolation import log_defect, try_each
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.sequence import Beams, Sequence
from elman_server.scheduling.waiting import (
    WaitingQueue,
    earliest_time_limit,
    over_share,
    slots_of_callers,
    time_limit,
)


class Admission:
    """Gives the slots of a batch to sequences.

    It has many methods because all that other threads change is behind one lock.

    Args:
        name: the model's name, for errors and the log.
        batch: holds the running sequences.
        policy: the thresholds.
        waiting_limit: the largest number of sequences that wait for a slot; see `WaitingQueue.may_add`.

    Attributes:
        waiting_limit: as given.
        is_closed: whether no more sequences are accepted.
    """

    def __init__(
        self, name: str, batch: RunningBatch[Any, Any], policy: SchedulingPolicy, *, waiting_limit: int
    ) -> None:
        self._name = name
        self._batch = batch
        self._policy = policy
        self.waiting_limit = waiting_limit
        self.is_closed = False
        # Under the lock.
        self._changed = threading.Condition()
        self._waiting = WaitingQueue()
        self._paused: dict[Sequence, None] = {}  # those that have been preempted
        self._pending: set[Sequence] = set()  # preempted ones that cannot choose their next token yet
        self._next_pending_limit = np.inf  # no time limit of these is earlier; read without the lock
        self._dropped: list[Sequence] = []  # preempted ones that were aborted
        self._some_aborted = False
        self._some_paused = False  # running ones
        self._some_may_share = False  # a caller may wait for the slot of another
        self._some_lost = False  # by a defect, see `lose`
        self._submitted = WeakSet[Sequence]()

    def submit(self, sequence: Sequence, *, always: bool) -> None:
        """Queue a sequence; see `Scheduler.submit`."""
        with self._changed:
            if self.is_closed:
                raise ServerDrainingError
            # A sequence that gets a slot in the next iteration does not count as waiting.
            free = self._batch.capacity - len(self._batch)
            if not always and not self._waiting.may_add(sequence.caller, self.waiting_limit + free):
                raise QueueFullError(f"waiting request for {self._name!r}", self.waiting_limit)
            self._some_may_share = self._some_may_share or sequence.caller not in self._waiting.callers
            self._waiting.append(sequence)
            self._submitted.add(sequence)
            self._changed.notify()

    def abort(self, sequence: Sequence) -> None:
        """Cancel a sequence; see `Scheduler.abort`."""
        with self._changed:
            sequence.aborted = self._some_aborted = True
            self._waiting.remove(sequence)
            self._paused.pop(sequence, None)
            self._pending.discard(sequence)
            if sequence.preempted is not None:
                self._dropped.append(sequence)
                self._changed.notify()

    def set_paused(self, sequence: Sequence, paused: bool) -> None:
        """Pause or resume a sequence; see `Scheduler.set_paused`."""
        with self._changed:
            sequence.paused = paused
            if paused and sequence.preempted is None:
                self._some_paused = True
            elif paused and self._waiting.remove(sequence):
                self._paused[sequence] = None
            elif not paused and sequence in self._paused:
                del self._paused[sequence]
                self._waiting.append(sequence, first=True)
                self._changed.notify()

    def close(self) -> None:
        """Accept no more sequences."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    @property
    def waiting_count(self) -> int:
        """The number of sequences that wait for a slot."""
        return len(self._waiting)

    def wait_for_work(self) -> bool:
        """Wait until there is something to run, to end or to forget. Returns whether it is still open."""
        with self._changed:
            limit = self._next_pending_limit if self._pending else np.inf
            self._changed.wait_for(
                lambda: self.is_closed or self._waiting or self._dropped or self._some_lost or len(self._batch),
                timeout=None if limit == np.inf else limit - time.perf_counter(),
            )
            return not self.is_closed

    def take_aborted(self) -> bool:
        """Returns whether a sequence was aborted since the last call."""
        with self._changed:
            aborted, self._some_aborted = self._some_aborted, False
        return aborted

    def is_interrupted(self) -> bool:
        """Returns whether something is to be done before the model runs again: a sequence was aborted or paused, a
        waiting one can be admitted or has exceeded its time limit, or the loop is to end."""
        if self._some_aborted or self._some_paused or self.is_closed:
            return True
        if self._waiting and (self._batch.free > 0 or self._some_may_share):
            return True
        if not self._waiting and not self._pending:
            return False
        return time.perf_counter() >= min(self._waiting.next_time_limit, self._next_pending_limit)

    def expire(self) -> list[Emission]:
        """Finish sequences that do not run and whose time limit has passed, and forget those that were aborted."""
        emissions = self.lose() if self._some_lost else []
        now = time.perf_counter()
        with self._changed:
            dropped, self._dropped = self._dropped, []
            expired = self._waiting.take_expired(now) + self._take_expired_pending(now)
        preemption = self._batch.preemption
        if preemption is not None:
            try_each(self._name, dropped, preemption.forget)
        ends, _ = try_each(self._name, expired, lambda sequence: self._end_of_expired(sequence, now))
        for sequence in expired:
            sequence.is_finished = True
        return emissions + [(sequence.receiver, ends.get(sequence, Failed(INTERNAL))) for sequence in expired]

    def _take_expired_pending(self, now: float) -> list[Sequence]:
        if now < self._next_pending_limit:
            return []
        expired = [sequence for sequence in self._pending if time_limit(sequence) <= now]
        self._pending.difference_update(expired)
        self._next_pending_limit = earliest_time_limit(self._pending)
        return expired

    def _end_of_expired(self, sequence: Sequence, now: float) -> Event:
        if sequence.preempted is not None and self._batch.preemption is not None:
            return self._batch.preemption.expired(sequence)
        sequence.started_at = now
        if isinstance(sequence, Beams):
            return BeamsFinished((), cut_short=True, step_count=0, started_at=now)
        return Finished(FinishReason.TIME_LIMIT, sequence.position, started_at=now)

    def preempt(self) -> list[Emission]:
        """Take the slots of paused sequences, and those of callers with more than their share as far as others wait
        for their own."""
        with self._changed:
            some_paused, self._some_paused = self._some_paused, False
            self._some_may_share = False
            waiting = self._waiting.firsts()
        batch, preemption = self._batch, self._batch.preemption
        if preemption is None or not (waiting or some_paused):
            return []
        leaving = [sequence for sequence in dict.fromkeys(batch.sequences) if sequence.paused] if some_paused else []
        emissions = preemption.preempt(leaving)
        sharing = self._over_share(waiting)
        emissions += preemption.preempt(sharing)
        leaving += sharing
        with self._changed:
            _, failed = try_each(self._name, leaving, self._queue_again)
        self._some_lost = self._some_lost or bool(failed)
        return emissions

    def _over_share(self, waiting: list[Sequence]) -> list[Sequence]:
        """The running sequences that give their slots to waiting ones."""
        batch = self._batch
        ran_before = time.perf_counter() - self._policy.time_slice_seconds
        try:
            return over_share(batch.sequences, waiting, batch.capacity, batch.free, ran_before) if waiting else []
        except Exception:  # All keep their slots.
            log_defect(self._name)
            return []

    def preempt_pending(self) -> list[Emission]:
        """Take the slots of sequences that cannot choose their next token yet, until they can."""
        preemption, pending = self._batch.preemption, self._batch.pending()
        if preemption is None or not pending:
            return []
        emissions = preemption.preempt(list(pending))
        with self._changed:
            self._pending.update(sequence for sequence in pending if sequence.preempted is not None)
            self._next_pending_limit = earliest_time_limit(self._pending)
        for sequence, work in pending.items():
            work.add_done_callback(partial(self._continue, sequence))
        return emissions

    def _continue(self, sequence: Sequence, _: Future[Any]) -> None:
        """Queue a sequence that can choose its next token now."""
        with self._changed:
            if sequence in self._pending:
                self._pending.remove(sequence)
                self._queue_again(sequence)
                self._changed.notify()

    def _queue_again(self, sequence: Sequence) -> None:
        if sequence.preempted is None:
            return  # It has failed.
        if sequence.aborted or sequence.is_finished:
            self._dropped.append(sequence)
        elif sequence.paused:
            self._paused[sequence] = None
        else:
            self._waiting.append(sequence, first=True)

    def may_arrive(self, seen: int) -> bool:
        """Returns whether more requests arrived since `seen` were waiting, and there are slots for more."""
        with self._changed:
            free, following = self._batch.free, self._waiting.next(Counter())
            return seen < len(self._waiting) < free and following is not None and following.row_count <= free

    def take_waiting(self) -> list[Sequence]:
        """Take out of the queue the sequences that get a slot now."""
        admitted: list[Sequence] = []
        try:
            self._take_waiting(admitted)
        except Exception:  # The others get theirs.
            log_defect(self._name)
            self._some_lost = True
        return admitted

    def _take_waiting(self, admitted: list[Sequence]) -> None:
        free = self._batch.free
        # The running sequences wait while sources are encoded.
        positions = self._policy.encoded_positions if len(self._batch) else np.inf
        held = slots_of_callers(self._batch.sequences) if self._waiting else Counter[str]()
        while free > 0 and positions > 0:
            with self._changed:
                sequence = self._waiting.next(held)
                if sequence is None or sequence.row_count > free:
                    break
                self._waiting.take(sequence)
            free -= sequence.row_count
            held[sequence.caller] += sequence.row_count
            sequence.admitted_at = time.perf_counter()
            sequence.started_at = sequence.started_at or sequence.admitted_at
            admitted.append(sequence)
            if sequence.source is not None and sequence.source.encoded is None:
                positions -= len(sequence.source.values)

    def lose(self) -> list[Emission]:
        """End the sequences that a defect has left in neither the queue nor the batch."""
        with self._changed:
            self._some_lost = False
            kept = {*self._waiting, *self._paused, *self._pending, *self._batch.sequences}
            lost = [one for one in self._submitted if not (one in kept or one.aborted or one.is_finished)]
        if self._batch.preemption is not None:
            preempted = [sequence for sequence in lost if sequence.preempted is not None]
            try_each(self._name, preempted, self._batch.preemption.forget)
        for sequence in lost:
            sequence.is_finished = True
        return [(sequence.receiver, Failed(INTERNAL)) for sequence in lost]

    def abort_all_of(self, receivers: Collection[Receiver]) -> None:
        """Cancel the sequences of receivers."""
        with self._changed:
            theirs = [one for one in self._submitted if one.receiver in receivers]
        for sequence in theirs:
            self.abort(sequence)

    def take_all(self) -> list[Sequence]:
        """Take out all sequences that have no slot."""
        with self._changed:
            found = [*self._waiting, *self._paused, *self._pending]
            self._waiting.clear()
            self._paused.clear()
            self._pending.clear()
        return found
