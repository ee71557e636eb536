"""The loop: admit, schedule, run, drop what was aborted meanwhile, update, emit.

One thread per model runs it and owns the model's engine. Waiting and admission are the same for all models; what an
iteration runs is decided by the batch, see `RunningBatch`. A failure belongs to one sequence, never to its batch.

An iteration is accounted for, and its events are emitted, before the next run starts: a run uses every core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from elman_server.errors import ServerDrainingError
from elman_server.scheduling.admission import Admission
from elman_server.scheduling.events import Failed
from elman_server.scheduling.interface import INTERNAL, Deliver, Emission, RunningBatch
from elman_server.scheduling.isolation import deliver_each
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.sequence import Sequence

_log = structlog.get_logger(__name__)


class Scheduler:
    """Continuous batching of one model's sequences.

    Args:
        name: the model's name, for the log.
        batch: holds the running sequences; from `start` on only this scheduler's thread uses it.
        policy: the thresholds.
        waiting_limit: the largest number of sequences that wait for a slot; callers share it.
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
        self._deliver = deliver
        self._admission = Admission(name, batch, policy, waiting_limit=waiting_limit)
        self._thread = threading.Thread(target=self._loop, name=f"scheduler {name}", daemon=True)

    def start(self) -> None:
        """Start to run what is submitted."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop; waiting and running sequences fail with ServerDrainingError. Returns when the thread ended."""
        self._admission.close()
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
        self._admission.submit(sequence, always=always)

    def abort(self, sequence: Sequence) -> None:
        """Cancel a sequence: it gets no further event, and its slot is free after the run that is under way. Harmless
        after its end."""
        self._admission.abort(sequence)

    def set_paused(self, sequence: Sequence, paused: bool) -> None:
        """Preempt a running sequence while its client does not read its events, or let it continue where it was. Has no
        effect after its end, and on trees, which keep their slots."""
        self._admission.set_paused(sequence, paused)

    @property
    def slot_count(self) -> int:
        return self._batch.capacity

    @property
    def waiting_limit(self) -> int:
        return self._admission.waiting_limit

    @property
    def running_count(self) -> int:
        return len(self._batch)

    @property
    def waiting_count(self) -> int:
        return self._admission.waiting_count

    def _loop(self) -> None:
        while not self._admission.is_closed:
            try:
                self._do(self._iterate)
            except Exception:  # Whatever happens, the thread goes on.
                _log.exception("scheduling failed", model=self._name)
        self._do(partial(self._batch.fail, ServerDrainingError()))
        self._do(lambda: [(one.receiver, Failed(ServerDrainingError())) for one in self._admission.take_all()])

    def _iterate(self) -> list[Emission]:
        """One iteration; returns the events of its run. Nothing else calls the engine."""
        admission, batch = self._admission, self._batch
        if not admission.wait_for_work():
            return []
        self._do(admission.expire)
        self._do(admission.preempt)
        self._do(self._coalesce_arrivals)
        self._do(lambda: batch.admit(admission.take_waiting()))
        self._do(admission.preempt_pending)
        if not len(batch):
            return []
        try:
            schedule = batch.schedule(others_wait=admission.waiting_count > 0)
            output = batch.run(schedule, admission.is_interrupted)
            return batch.update(schedule, output, aborted=admission.take_aborted())
        except Exception:
            # A defect: the running sequences fail, and the server goes on.
            _log.exception("scheduling failed", model=self._name, running=len(batch))
            return batch.fail(INTERNAL)

    def _do(self, step: Callable[[], list[Emission]]) -> None:
        """Emit what a step returns that runs nothing. A defect ends the sequences that it has lost, and no other."""
        try:
            emissions = step()
        except Exception:
            _log.exception("scheduling failed", model=self._name)
            emissions = self._admission.lose()
        self._emit(emissions)

    def _coalesce_arrivals(self) -> list[Emission]:
        """Wait while requests keep arriving: accepting a call needs the cores, too, and sequences that start together
        share the encoder's run and every run of their prompts."""
        began, seen = time.perf_counter(), 0
        while self._admission.may_arrive(seen):
            seen = self._admission.waiting_count
            crowd = seen > len(self._batch)
            patience = self._policy.crowd_patience_seconds if crowd else self._policy.arrival_patience_seconds
            if time.perf_counter() >= began + patience:
                break
            self._deliver([])  # Lets the event loop accept calls.
        return []

    def _emit(self, emissions: list[Emission]) -> None:
        if not emissions:
            return
        started = time.perf_counter()
        try:
            self._deliver(emissions)
        except Exception:
            _log.exception("events not delivered", model=self._name, events=len(emissions))
            self._admission.abort_all_of(deliver_each(self._name, self._deliver, emissions))
            return
        self._batch.record_emission(len(emissions), time.perf_counter() - started)
