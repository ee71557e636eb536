"""Callers share the slots and the queue of a model."""

from __future__ import annotations

import numpy as np
import pytest

from elman_server.decoding.beams import BeamParams
from elman_server.errors import QueueFullError
from elman_server.scheduling import Beams, Finished, FinishReason, Generation, Scheduler, Sequence, Tokens
from elman_server.scheduling.waiting import WaitingQueue, over_share, slots_of_callers
from tests.support.fake_engine import FakeEngine, continuation
from tests.support.scheduling import Inbox, generation, inbox, make_policy, make_scheduler, reading, until_running

ENDLESS = 10**6


def of(caller: str, count: int, width: int = 1) -> list[Sequence]:
    """Return sequences of a caller, the first one admitted first."""
    if width > 1:
        params = BeamParams(width, width, 5, None)
        return [Beams(np.array([1]), Inbox(), params=params, caller=caller) for _ in range(count)]
    found: list[Sequence] = [generation([1], 5, caller=caller) for _ in range(count)]
    for number, sequence in enumerate(found):
        sequence.admitted_at = number
    return found


def callers_of(sequences: list[Sequence]) -> str:
    return "".join(sequence.caller for sequence in sequences)


def taken(queue: WaitingQueue, slots: dict[str, int], count: int) -> str:
    """Give slots to the next sequences; returns their callers."""
    held, found = slots_of_callers([]), []
    held.update(slots)
    for _ in range(count):
        sequence = queue.next(held)
        assert sequence is not None
        queue.take(sequence)
        held[sequence.caller] += sequence.row_count
        found.append(sequence)
    return callers_of(found)


@pytest.mark.parametrize(
    ("waiting", "held", "expected"),
    [
        ("aaabbc", {}, "abcaba"),
        ("aaab", {"a": 3}, "baaa"),
        ("aaabbb", {"a": 2}, "bbabaa"),
        ("aaa", {"b": 9}, "aaa"),
    ],
)
def test_the_caller_with_the_fewest_slots_is_next(waiting: str, held: dict[str, int], expected: str) -> None:
    queue = WaitingQueue()
    for caller in waiting:
        queue.append(*of(caller, 1))
    assert taken(queue, held, len(waiting)) == expected
    assert not queue


def test_sequences_of_a_caller_stay_in_order_and_those_that_ran_before_come_first() -> None:
    queue, (first, second, third) = WaitingQueue(), of("a", 3)
    queue.append(second)
    queue.append(third)
    queue.append(first, first=True)
    assert list(queue) == [first, second, third]
    assert queue.remove(second)
    assert not queue.remove(second)
    assert (list(queue), len(queue)) == ([first, third], 2)


@pytest.mark.parametrize(
    ("running", "waiting", "free", "expected"),
    [
        ("aaaaaaaa", "b", 0, "a"),
        ("aaaaaaaa", "bc", 0, "aa"),
        ("aaaaaaa", "b", 1, ""),  # There is a slot.
        ("aaaabbbb", "b", 0, ""),  # b has its half.
        ("aaaaabbb", "b", 0, "a"),
        ("aaaaabbb", "bc", 0, "a"),  # The share is 2 now; b has more than that.
        ("aaaaaaaa", "a", 0, ""),  # Nobody else is there.
        ("abcdefgh", "i", 0, ""),  # Everybody has one.
        ("aabcdefg", "h", 0, "a"),
    ],
)
def test_who_has_more_than_an_even_share_gives_slots_to_who_has_less(
    running: str, waiting: str, free: int, expected: str
) -> None:
    slots = [sequence for caller in running for sequence in of(caller, 1)]
    queue = [sequence for caller in waiting for sequence in of(caller, 1)]
    assert callers_of(over_share(slots, queue, 8, free, -1)) == expected


def test_the_sequence_that_ran_longest_leaves_first() -> None:
    running = of("a", 4)
    assert over_share(running, of("b", 1), 4, 0, -1) == running[:1]


@pytest.mark.parametrize(
    ("waiting", "ran_before", "expected"),
    [("d", 0.5, "a"), ("de", 1.5, "ab"), ("d", 0, ""), ("ab", 9, ""), ("adb", 9, "a")],
)
def test_where_callers_are_more_than_slots_they_take_turns(waiting: str, ran_before: float, expected: str) -> None:
    running = [sequence for caller in "abc" for sequence in of(caller, 1)]
    for number, sequence in enumerate(running):
        sequence.admitted_at = number
    queue = [sequence for caller in waiting for sequence in of(caller, 1)]
    assert callers_of(over_share(running, queue, 3, 0, ran_before)) == expected


def test_more_callers_than_slots_all_get_on() -> None:
    scheduler = make_scheduler(FakeEngine(capacity=2), policy=make_policy(time_slice_seconds=0.01))
    scheduler.start()
    streams = [generation([1, number], ENDLESS, caller=str(number)) for number in range(7)]
    for stream in streams:
        scheduler.submit(stream)
    firsts = [inbox(stream).events.get(timeout=10) for stream in streams]
    scheduler.stop()
    for number, (first, stream) in enumerate(zip(firsts, streams, strict=True)):
        assert isinstance(first, Tokens)
        tokens = [*first.ids, *inbox(stream).tokens_and_end()[0]]
        assert tokens == continuation([1, number], len(tokens))


def test_a_beam_search_gives_and_gets_all_its_slots() -> None:
    search, others = of("a", 1, width=4), of("a", 4)
    assert over_share([*search * 2, *others], of("b", 1), 8, 0, -1) == search
    running = of("a", 8)
    assert over_share(running, of("b", 1, width=4), 8, 0, -1) == running[:4]


def test_a_caller_that_has_filled_the_queue_keeps_nobody_out() -> None:
    engine = FakeEngine(capacity=2)
    engine.gate.clear()
    scheduler = make_scheduler(engine, waiting_limit=6)
    for sequence in of("a", 2 + 6):
        scheduler.submit(sequence)
    with pytest.raises(QueueFullError):
        scheduler.submit(*of("a", 1))
    for sequence in of("b", 4):  # of 2 slots and 6 places
        scheduler.submit(sequence)
    with pytest.raises(QueueFullError):
        scheduler.submit(*of("b", 1))
    scheduler.submit(*of("c", 1))
    scheduler.start()
    engine.gate.set()
    scheduler.stop()


@pytest.fixture
def full() -> tuple[Scheduler, list[Generation]]:
    """A scheduler whose slots are held by one caller, who has as many waiting."""
    scheduler = make_scheduler(FakeEngine(capacity=4))
    scheduler.start()
    streams = [generation([1, number], ENDLESS, caller="a") for number in range(8)]
    for stream in streams:
        scheduler.submit(stream)
    until_running(scheduler, 4)
    return scheduler, streams


def test_a_request_gets_its_slot_while_another_caller_has_all(full: tuple[Scheduler, list[Generation]]) -> None:
    scheduler, streams = full
    for number in range(5):
        request = generation([2, number], 9, caller="b")
        scheduler.submit(request)
        assert inbox(request).tokens_and_end() == (continuation([2, number], 9), Finished(FinishReason.MAX_TOKENS, 10))
    read = reading([1, 2, 3], caller="c")
    scheduler.submit(read)
    inbox(read).events.get(timeout=10)
    assert scheduler.running_count == 4
    scheduler.stop()
    emitted = [inbox(stream).tokens_and_end()[0] for stream in streams]
    assert [continuation([1, number], len(tokens)) for number, tokens in enumerate(emitted)] == emitted


def test_a_paused_generation_has_no_slot_and_continues_where_it_was(full: tuple[Scheduler, list[Generation]]) -> None:
    scheduler, streams = full
    for stream in streams:
        scheduler.set_paused(stream, paused=True)
    until_running(scheduler, 4)
    for stream in streams[:4]:
        scheduler.set_paused(stream, paused=False)
    scheduler.abort(streams[1])
    scheduler.abort(streams[4])
    until_running(scheduler, 4)
    scheduler.stop()
    for number, stream in enumerate(streams):
        if not stream.aborted:
            tokens, _ = inbox(stream).tokens_and_end()
            assert tokens == continuation([1, number], len(tokens))
