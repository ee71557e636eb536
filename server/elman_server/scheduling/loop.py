"""The loop: admit, schedule, run, drop what was aborted meanwhile, update, emit.

One thread per model runs it and owns the model's engine. Waiting and admission are the same for all models; what an
iteration runs is decided by the batch, see `RunningBatch`. A failure belongs to one sequence, never to its batch.

An iteration is accounted for, and its events are emitted, before the next run starts: a run uses every core.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np
import structlog

from elman_server.errors import QueueFullError, ServerDrainingError
from elman_server.scheduling.events import BeamsFinished, Event, Failed, Finished, FinishReason
from elman_server.scheduling.interface import INTERNAL, Deliver, Emission, RunningBatch
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.sequence import Beams, Generation, Sequence

_log = structlog.get_logger(__name__)


class Scheduler:
    """Continuous batching of one model's sequences.

    Args:
        name: the model's name, for the log.
        batch: holds the running sequences; from `start` on only this scheduler's thread uses it.
        policy: the thresholds.
        waiting_limit: the largest number of sequences that wait for a slot.
        deliver: takes the events of an iteration; called on the scheduler's thread.
    """

    def __init__(
        self,
        name: str,
        batch: RunningBatch[Any, Any],
        policy: SchedulingPolicy,
        *,
        waiting_limit: int,
        deliver: Deliver,
    ) -> None:
        self._name = name
        self._batch = batch
        self._policy = policy
        self._waiting_limit = waiting_limit
        self._deliver = deliver
        # Shared with callers, under the lock.
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._some_aborted = False
        self._stopped = False
        self._next_time_limit = np.inf  # the earliest time limit of a waiting sequence
        self._thread = threading.Thread(target=self._loop, name=f"scheduler {name}", daemon=True)

    def start(self) -> None:
        """Start to run what is submitted."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop; waiting and running sequences fail with ServerDrainingError. Returns when the thread ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def submit(self, sequence: Sequence, *, always: bool = False) -> None:
        """Queue a sequence.

        Args:
            sequence: what to run.
            always: accept it however many wait; for a part of a request that was accepted before.

        Raises:
            QueueFullError: too many sequences wait.
            ServerDrainingError: the scheduler has been stopped.
        """
        with self._changed:
            if self._stopped:
                raise ServerDrainingError
            # A sequence that gets a slot in the next iteration does not count as waiting.
            free = self._batch.capacity - len(self._batch)
            if not always and len(self._waiting) >= self._waiting_limit + free:
                raise QueueFullError(f"waiting request for {self._name!r}", self._waiting_limit)
            self._waiting.append(sequence)
            self._next_time_limit = min(self._next_time_limit, _time_limit(sequence))
            self._changed.notify()

    def abort(self, sequence: Sequence) -> None:
        """Cancel a sequence: it gets no further event, and its slot is free after the run that is under way. Harmless
        after its end."""
        with self._changed:
            sequence.aborted = self._some_aborted = True
            if sequence in self._waiting:
                self._waiting.remove(sequence)

    @property
    def slot_count(self) -> int:
        return self._batch.capacity

    @property
    def waiting_limit(self) -> int:
        return self._waiting_limit

    @property
    def running_count(self) -> int:
        return len(self._batch)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def _loop(self) -> None:
        while self._wait_for_work():
            try:
                self._iterate()
            except Exception:
                # A defect: the running sequences fail, and the server goes on.
                _log.exception("scheduling failed", model=self._name, running=len(self._batch))
                self._emit(self._batch.fail(INTERNAL))
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        self._emit(self._batch.fail(ServerDrainingError()))
        self._emit([(sequence.receiver, Failed(ServerDrainingError())) for sequence in waiting])

    def _iterate(self) -> None:
        """One iteration. Nothing else calls the engine."""
        self._emit(self._expire())
        self._emit(self._admit())
        if not len(self._batch):
            return
        schedule = self._batch.schedule(others_wait=bool(self._waiting))
        output = self._batch.run(schedule, self._is_interrupted)
        aborted = self._take_aborted()
        self._emit(self._batch.update(schedule, output, aborted=aborted, interrupted=aborted or self._is_interrupted()))

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or len(self._batch))
            return not self._stopped

    def _take_aborted(self) -> bool:
        """Returns whether a sequence was aborted since the last call."""
        with self._changed:
            aborted, self._some_aborted = self._some_aborted, False
        return aborted

    def _is_interrupted(self) -> bool:
        """Returns whether something is to be done before the model runs again: a sequence was aborted, a waiting one
        can be admitted or has exceeded its time limit, or the server stops."""
        if self._some_aborted or self._stopped:
            return True
        return bool(self._waiting) and (self._batch.free > 0 or time.perf_counter() >= self._next_time_limit)

    def _expire(self) -> list[Emission]:
        """Finish waiting sequences whose time limit has passed."""
        now = time.perf_counter()
        if now < self._next_time_limit:
            return []
        with self._changed:
            expired = [sequence for sequence in self._waiting if _time_limit(sequence) <= now]
            self._waiting = deque(sequence for sequence in self._waiting if _time_limit(sequence) > now)
            self._next_time_limit = min(map(_time_limit, self._waiting), default=np.inf)
        for sequence in expired:
            sequence.is_finished, sequence.started_at = True, now
        return [(sequence.receiver, _expired(sequence)) for sequence in expired]

    def _admit(self) -> list[Emission]:
        """Give free slots to waiting sequences, first come, first served."""
        self._coalesce_arrivals()
        return self._batch.admit(self._take_waiting())

    def _coalesce_arrivals(self) -> None:
        """Wait while requests keep arriving: accepting a call needs the cores, too, and sequences that start together
        share the encoder's run and every run of their prompts."""
        began, seen = time.perf_counter(), 0
        while self._may_arrive(seen):
            seen = len(self._waiting)
            crowd = seen > len(self._batch)
            patience = self._policy.crowd_patience_seconds if crowd else self._policy.arrival_patience_seconds
            if time.perf_counter() >= began + patience:
                break
            self._deliver([])  # Lets the event loop accept calls.

    def _may_arrive(self, seen: int) -> bool:
        """Returns whether more requests arrived since `seen` were waiting, and there are slots for more."""
        with self._changed:
            free = self._batch.free
            return seen < len(self._waiting) < free and self._waiting[0].row_count <= free

    def _take_waiting(self) -> list[Sequence]:
        """Remove from the queue the sequences that get a slot now."""
        admitted: list[Sequence] = []
        free = self._batch.free
        # The running sequences wait while sources are encoded.
        positions = self._policy.encoded_positions if len(self._batch) else np.inf
        while free > 0 and positions > 0:
            with self._changed:
                if not self._waiting:
                    break
                free -= self._waiting[0].row_count
                if free < 0:
                    break
                sequence = self._waiting.popleft()
            sequence.started_at = time.perf_counter()
            if sequence.source is not None and sequence.source.encoded is None:
                positions -= len(sequence.source.values)
            admitted.append(sequence)
        return admitted

    def _emit(self, emissions: list[Emission]) -> None:
        if emissions:
            started = time.perf_counter()
            self._deliver(emissions)
            self._batch.record_emission(len(emissions), time.perf_counter() - started)


def _time_limit(sequence: Sequence) -> float:
    """The time, by `time.perf_counter`, at which a sequence finishes with what there is."""
    if isinstance(sequence, Generation | Beams) and sequence.time_limit is not None:
        return sequence.time_limit
    return np.inf


def _expired(sequence: Sequence) -> Event:
    """The end of a sequence for which no step has been taken."""
    if isinstance(sequence, Beams):
        return BeamsFinished((), cut_short=True, step_count=0, started_at=sequence.started_at)
    return Finished(FinishReason.TIME_LIMIT, sequence.position, started_at=sequence.started_at)
