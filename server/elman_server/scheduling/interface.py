"""What the loop asks of a batch: the rows of a model that steps through sequences, or the nodes of trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from elman_server.errors import ModelFailedError
from elman_server.scheduling.events import Event, Receiver
from elman_server.scheduling.sequence import Sequence

Emission = tuple[Receiver, Event]
# Delivers events, in order, which may be none; returns when the event loop has dealt with them, or after a while.
# Where it raises, it has delivered none of them.
Deliver = Callable[[list[Emission]], None]

MODEL_FAILED = ModelFailedError("the model failed on this input")
INTERNAL = ModelFailedError("internal error")

_Schedule = TypeVar("_Schedule")
_Output = TypeVar("_Output")


class Preemption(Protocol):
    """Takes slots from running sequences, which continue later exactly where they were. Only the loop's thread uses
    it; sequences get slots again by `RunningBatch.admit`."""

    def preempt(self, sequences: Several[Sequence]) -> list[Emission]:
        """Take the slots of running sequences; returns their coalesced tokens, and the ends of those that failed."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Drop a preempted sequence."""
        ...

    def expired(self, sequence: Sequence) -> Event:
        """Drop a preempted sequence whose time limit has passed; returns its end."""
        ...


class RunningBatch(Protocol[_Schedule, _Output]):
    """The running sequences of one model. Only the loop's thread uses it; others may read its size.

    An iteration calls `schedule`, `run` and `update`, once each and in this order.
    """

    @property
    def capacity(self) -> int:
        """The number of slots."""
        ...

    def __len__(self) -> int:
        """The number of slots in use."""
        ...

    @property
    def sequences(self) -> Several[Sequence]:
        """The sequence of each slot in use."""
        ...

    @property
    def preemption(self) -> Preemption | None:
        """What takes slots from running sequences; None where they run to their end."""
        ...

    @property
    def free(self) -> int:
        """The number of slots for new sequences: neither in use nor reserved for a running one."""
        ...

    def admit(self, sequences: list[Sequence]) -> list[Emission]:
        """Take in sequences for whose `row_count` there are free slots; returns the ends of those that failed."""
        ...

    def pending(self) -> Mapping[Sequence, Future[Any]]:
        """The running sequences that cannot choose their next token yet, and what each waits for."""
        ...

    def schedule(self, others_wait: bool) -> _Schedule:
        """Decide what the next iteration runs.

        Args:
            others_wait: whether requests wait for a slot.
        """
        ...

    def run(self, schedule: _Schedule, interrupted: Callable[[], bool]) -> _Output:
        """Run the model, at least once. A failed step changes nothing.

        Args:
            schedule: what to run.
            interrupted: whether the loop has something to do before the model runs again.
        """
        ...

    def update(self, schedule: _Schedule, output: _Output, *, aborted: bool) -> list[Emission]:
        """Account for a run and free the slots of sequences that finished or were aborted.

        Args:
            schedule: what was run.
            output: the output of that run.
            aborted: whether sequences were aborted since the last call.

        Returns:
            The events that are due, in order; none for aborted sequences.
        """
        ...

    def record_emission(self, count: int, seconds: float) -> None:
        """Learn that emitting `count` events kept the model waiting for `seconds`."""
        ...

    def fail(self, error: Exception) -> list[Emission]:
        """Fail all sequences: each gets its coalesced tokens, then this error, unless it has finished."""
        ...
