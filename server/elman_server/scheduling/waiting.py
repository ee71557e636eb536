"""The sequences that wait for slots. Callers take turns, so that no caller waits for all requests of another one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, KeysView, Mapping
from collections.abc import Sequence as Several

import numpy as np

from elman_server.scheduling.callers import has_room
from elman_server.scheduling.sequence import Beams, Generation, Sequence


class WaitingQueue:
    """Waiting sequences, in a queue for each caller.

    Attributes:
        next_time_limit: no time limit of a waiting sequence is earlier, by `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.next_time_limit = np.inf
        self._queues: dict[str, deque[Sequence]] = {}  # none is empty; the caller whose turn it is comes first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    @property
    def callers(self) -> KeysView[str]:
        """The callers of waiting sequences."""
        return self._queues.keys()

    def may_add(self, caller: str, limit: int) -> bool:
        """Whether a caller may have one more waiting sequence.

        Args:
            caller: the caller.
            limit: how many may wait; see `has_room`.
        """
        own = self._queues.get(caller, ())
        return has_room(len(own), self._count, len(self._queues) + (not own), limit)

    def append(self, sequence: Sequence, *, first: bool = False) -> None:
        """Add a sequence.

        Args:
            sequence: the sequence.
            first: whether it comes before those of its caller that wait already: it has run before.
        """
        queue = self._queues.setdefault(sequence.caller, deque())
        queue.appendleft(sequence) if first else queue.append(sequence)
        self._count += 1
        self.next_time_limit = min(self.next_time_limit, time_limit(sequence))

    def remove(self, sequence: Sequence) -> bool:
        """Take out a sequence; returns whether it was there."""
        queue = self._queues.get(sequence.caller)
        if queue is None or sequence not in queue:
            return False
        queue.remove(sequence)
        self._count -= 1
        if not queue:
            del self._queues[sequence.caller]
        return True

    def next(self, held: Mapping[str, int]) -> Sequence | None:
        """The sequence that gets the next slot: the first of the caller with the fewest slots. Those with equally many
        take turns.

        Args:
            held: the number of slots of each caller, 0 for one without any.
        """
        if not self._queues:
            return None
        return self._queues[min(self._queues, key=held.__getitem__)][0]

    def take(self, sequence: Sequence) -> None:
        """Take out the sequence that `next` has found; it is then the turn of another caller."""
        self.remove(sequence)
        if sequence.caller in self._queues:
            self._queues[sequence.caller] = self._queues.pop(sequence.caller)

    def firsts(self) -> list[Sequence]:
        """The first sequence of each caller, in turn."""
        return [queue[0] for queue in self._queues.values()]

    def take_expired(self, now: float) -> list[Sequence]:
        """Take out the sequences whose time limit has passed."""
        if now < self.next_time_limit:
            return []
        expired = [sequence for sequence in self if time_limit(sequence) <= now]
        for sequence in expired:
            self.remove(sequence)
        self.next_time_limit = earliest_time_limit(self)
        return expired

    def clear(self) -> None:
        """Forget all of them."""
        self._queues.clear()
        self._count = 0


def time_limit(sequence: Sequence) -> float:
    """The time, by `time.perf_counter`, at which a sequence finishes with what there is."""
    if isinstance(sequence, Generation | Beams) and sequence.time_limit is not None:
        return sequence.time_limit
    return np.inf


def earliest_time_limit(sequences: Iterable[Sequence]) -> float:
    """The first of their time limits."""
    return min(map(time_limit, sequences), default=np.inf)


def slots_of_callers(running: Several[Sequence]) -> Counter[str]:
    """The number of slots of each caller.

    Args:
        running: the sequence of each slot in use; a beam search holds all slots that it may come to need.
    """
    held = Counter[str]()
    for sequence in dict.fromkeys(running):
        held[sequence.caller] += sequence.row_count
    return held


def over_share(
    running: Several[Sequence], waiting: Collection[Sequence], capacity: int, free: int, ran_before: float
) -> list[Sequence]:
    """The running sequences to preempt: those of callers with more than an even share of the slots, while a caller with
    less waits. A single caller may have all slots. Where there are more callers than slots, those without any take
    turns with those whose sequences have run for a while.

    Args:
        running: the sequence of each slot in use.
        waiting: the first waiting sequence of each caller, in turn; one at least.
        capacity: the number of slots.
        free: the number of slots that can be given away.
        ran_before: a sequence that was admitted before this time, by `time.perf_counter`, has run for a while.
    """
    held = slots_of_callers(running)
    callers = held.keys() | {sequence.caller for sequence in waiting}
    share = max(1, capacity // len(callers))
    leaving: dict[Sequence, None] = {}
    for sequence in waiting:
        if held[sequence.caller] and held[sequence.caller] + sequence.row_count > share:
            continue
        while free < sequence.row_count:
            richest = max(held, key=held.__getitem__, default="")
            rich = held[richest] > share
            own = [one for one in running if (one.caller == richest or not rich) and one not in leaving]
            longest = min(own, key=lambda one: one.admitted_at, default=None)
            if longest is None or not (rich or (longest.admitted_at < ran_before and not held[sequence.caller])):
                return list(leaving)
            leaving[longest] = None
            free += longest.row_count
            held[longest.caller] -= longest.row_count
        free -= sequence.row_count
        held[sequence.caller] += sequence.row_count
    return list(leaving)
