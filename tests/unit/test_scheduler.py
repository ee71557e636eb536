"""The loop, on an engine that can be computed by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from elman_server.decoding.beams import BeamParams
from elman_server.decoding.constraints import Constraint, ConstraintKind, Grammars
from elman_server.errors import ModelFailedError, QueueFullError, ServerDrainingError
from elman_server.scheduling import (
    Beams,
    BeamsFinished,
    Emission,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Reading,
    ReadingFinished,
    SamplingParams,
    Scheduler,
    SchedulingPolicy,
    Snapshot,
    Tokens,
)
from elman_server.scheduling.costs import StepCosts
from elman_server.scheduling.rows import planning
from elman_server.scheduling.rows.horizon import Horizon, horizon
from elman_server.scheduling.rows.pending import PendingTokens
from elman_server.scheduling.rows.table import RowTable
from tests.support.fake_engine import LETTERS, MODULUS, NAN, POISON, SIZE, FakeEngine, continuation
from tests.support.scheduling import (
    Inbox,
    generation,
    hand_over,
    inbox,
    make_policy,
    make_scheduler,
    reading,
    until_running,
)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def scheduler(engine: FakeEngine) -> Iterator[Scheduler]:
    scheduler = make_scheduler(engine)
    scheduler.start()
    yield scheduler
    engine.gate.set()
    scheduler.stop()


def run_together(scheduler: Scheduler, sequences: list[Generation]) -> None:
    """Run sequences that all wait already when the scheduler starts, to the last one's end, and stop it."""
    for sequence in sequences:
        scheduler.submit(sequence)
    scheduler.start()
    for sequence in sequences:
        inbox(sequence).tokens_and_end()
    scheduler.stop()


def test_generation_continues_its_prompt(scheduler: Scheduler) -> None:
    sequence = generation([1, 2, 3], max_tokens=7)
    scheduler.submit(sequence)
    assert inbox(sequence).tokens_and_end() == (continuation([1, 2, 3], 7), Finished(FinishReason.MAX_TOKENS, 9))


def test_the_state_of_an_output_that_nothing_can_follow_is_that_before_its_last_token(scheduler: Scheduler) -> None:
    grammars = Grammars([None, *(letter.encode() for letter in LETTERS[1:])], None)
    grammar = grammars.compile(Constraint(ConstraintKind.REGEX, "a[0-9]?"))
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=9, grammar=grammar)
    sequence = Generation(np.array([3]), Inbox(), params=params, keep_state=True)
    scheduler.submit(sequence)
    expected = Finished(FinishReason.CONSTRAINT, 1, {"total": np.array(3)})
    assert inbox(sequence).tokens_and_end() == ([LETTERS.index("a")], expected)


def test_time_is_up_for_those_who_wait_for_a_row(scheduler: Scheduler) -> None:
    others = [generation([2], 10**6) for _ in range(4)]
    for other in others:
        scheduler.submit(other)
    until_running(scheduler, 4)
    now = time.perf_counter()
    late, early = [generation([1], 5, time_limit=now + limit) for limit in (600, 0.05)]
    search = Beams(np.array([1]), Inbox(), params=BeamParams(2, 2, 5, None), time_limit=now + 0.1)
    for sequence in (late, early, search):
        scheduler.submit(sequence)
    assert inbox(early).tokens_and_end() == ([], Finished(FinishReason.TIME_LIMIT, 0))
    tokens, end = inbox(search).tokens_and_end()
    assert isinstance(end, BeamsFinished)
    assert (tokens, end.hypotheses, end.cut_short, end.step_count) == ([], (), True, 0)
    assert scheduler.running_count == 4
    assert scheduler.waiting_count == 1
    for other in others:
        scheduler.abort(other)
    assert inbox(late).tokens_and_end()[0] == continuation([1], 5)


def test_end_token_ends_and_is_not_shown(scheduler: Scheduler) -> None:
    expected = continuation([1, 2], 20)
    end = expected[4]
    sequence = generation([1, 2], max_tokens=20, end_token=end)
    scheduler.submit(sequence)
    shown = expected[: expected.index(end)]
    assert inbox(sequence).tokens_and_end() == (shown, Finished(FinishReason.END_TOKEN, 1 + len(shown)))


@pytest.mark.parametrize("prompt", [[1], [1, 2], [3, 1, 4, 1, 5]])
@pytest.mark.parametrize("end_after", [1, 2, 3, 4, 5, 6, None])
def test_state_is_that_of_the_end_wherever_in_a_chunk_it_falls(
    engine: FakeEngine, scheduler: Scheduler, prompt: list[int], end_after: int | None
) -> None:
    tokens = continuation(prompt, 40)
    # Others run meanwhile, so that chunks do not end where this one does.
    others = [generation([2], 10**6), generation([5, 5], 10**6)]
    for other in others:
        scheduler.submit(other)
        inbox(other).events.get(timeout=10)
    end = None if end_after is None else tokens[end_after]
    sequence = generation(prompt, 9, end_token=end, keep_state=True)
    scheduler.submit(sequence)
    shown, finished = inbox(sequence).tokens_and_end()
    assert shown == (tokens[:9] if end is None else tokens[: tokens.index(end)][:9])
    assert isinstance(finished, Finished)
    assert finished.state is not None
    # All has been read but for the last token: what follows it can be chosen anew.
    seen = (prompt + shown)[:-1]
    assert finished.position == len(seen)
    assert finished.state == {"total": sum(seen)}
    for other in others:
        scheduler.abort(other)


def test_a_row_that_ends_early_in_a_chunk_is_replayed(engine: FakeEngine, scheduler: Scheduler) -> None:
    tokens = continuation([1, 2], 40)
    sequence = generation([1, 2], 30, end_token=tokens[1], keep_state=True)
    scheduler.submit(sequence)
    inbox(sequence).tokens_and_end()
    assert engine.replays  # Else this test and the one above show nothing.
    forgotten = generation([1, 2], 30, end_token=tokens[1])
    engine.replays.clear()
    scheduler.submit(forgotten)
    inbox(forgotten).tokens_and_end()
    assert not engine.replays  # Nobody goes on from there.


def test_sequences_of_all_lengths_share_the_batch_unharmed(scheduler: Scheduler, engine: FakeEngine) -> None:
    engine.gate.clear()
    random = np.random.default_rng(0)
    sequences = [
        generation(random.integers(1, NAN, random.integers(1, 12)).tolist(), int(random.integers(1, 20)))
        for _ in range(40)
    ]
    for sequence in sequences:
        scheduler.submit(sequence)
    engine.gate.set()
    for sequence in sequences:
        expected = continuation(sequence.forced.tolist(), sequence.params.max_tokens)
        assert inbox(sequence).tokens_and_end()[0] == expected
    assert max(rows for rows, _ in engine.runs) == engine.capacity
    assert {count for _, count in engine.runs} == set(engine.step_counts)
    until_running(scheduler, 0)
    assert scheduler.waiting_count == 0


def test_newcomer_joins_at_the_next_step(scheduler: Scheduler, engine: FakeEngine) -> None:
    long = generation([1], max_tokens=10**6)
    scheduler.submit(long)
    inbox(long).events.get(timeout=10)
    short = generation([2, 2], max_tokens=3)
    scheduler.submit(short)
    assert inbox(short).tokens_and_end()[0] == continuation([2, 2], 3)
    until_running(scheduler, 1)
    scheduler.abort(long)


def test_chunks_are_long_in_a_steady_state_and_short_at_the_end(scheduler: Scheduler, engine: FakeEngine) -> None:
    sequence = generation([1], max_tokens=4 + 4 + 2 + 1)
    scheduler.submit(sequence)
    inbox(sequence).tokens_and_end()
    # Of a batch size that was never seen nobody knows how long it takes: one step at first.
    assert [count for _, count in engine.runs] == [1, 4, 4, 2]


def test_while_all_read_their_prompts_a_chunk_ends_with_the_first_prompt(engine: FakeEngine) -> None:
    run_together(make_scheduler(engine), [generation([1] * 8, 1), generation([2] * 9, 1)])
    # A prompt's last step gives the first token: 1 + 4 + 2 + 1 steps, and one more of the other.
    assert engine.runs == [(2, 1), (2, 4), (2, 2), (2, 1), (1, 1)]


def test_while_somebody_waits_for_a_row_no_chunk_runs_beyond_the_first_end() -> None:
    engine = FakeEngine(capacity=2)
    run_together(make_scheduler(engine), [generation([1], length) for length in (7, 100, 5)])
    # Two rows with one step, then 6 steps that the first has left: 4 and 2; then the one that waited joins, and the run
    # ends with its first token.
    assert engine.runs[:5] == [(2, 1), (2, 4), (2, 2), (2, 1), (2, 4)]


def test_calls_that_come_while_others_are_let_in_begin_with_them(engine: FakeEngine) -> None:
    sequences = [generation([index + 1], 5) for index in range(3)]
    coming = list(sequences)

    def turn(emissions: list[Emission]) -> None:
        """Hand over what there is, and take up the next call: what the event loop does."""
        hand_over(emissions)
        if coming:
            scheduler.submit(coming.pop(0))

    scheduler = make_scheduler(engine, deliver=turn)
    turn([])
    scheduler.start()
    for sequence in sequences:
        assert inbox(sequence).tokens_and_end()[0] == continuation(sequence.forced.tolist(), 5)
    scheduler.stop()
    assert engine.runs[0][0] == 3


@pytest.mark.parametrize("running", [0, 12])
def test_who_runs_waits_for_a_crowd_as_long_as_it_keeps_coming_but_not_for_a_few(running: int) -> None:
    """Ten calls that come one by one, 4 ms each, beside none and beside more than they are."""
    engine = FakeEngine(capacity=30)
    crowd = [generation([1], 3) for _ in range(10)]
    coming = list[Generation]()

    def turn(emissions: list[Emission]) -> None:
        hand_over(emissions)
        if coming:
            time.sleep(0.004)
            scheduler.submit(coming.pop(0))

    scheduler = make_scheduler(engine, deliver=turn, policy=make_policy(1e-9))  # One step a run.
    before = [generation([2], 10**6) for _ in range(running)]
    for sequence in before:
        scheduler.submit(sequence)
    scheduler.start()
    until_running(scheduler, running)
    coming += crowd[1:]
    scheduler.submit(crowd[0])
    for sequence in crowd:
        inbox(sequence).tokens_and_end()
    scheduler.stop()
    sizes = [rows for rows, _ in engine.runs if rows > running]
    assert (sizes[0] == 10) == (running == 0)


def test_who_waits_for_rows_that_are_not_free_keeps_nobody() -> None:
    """While a search of 3 waits for rows of which 2 are free, no turn waits for calls that might come with it."""
    engine, idle = FakeEngine(capacity=4), 0

    def turn(emissions: list[Emission]) -> None:
        nonlocal idle
        idle += not emissions
        hand_over(emissions)

    scheduler = make_scheduler(engine, deliver=turn, policy=make_policy(1e-9))  # One step a run.
    streams = [generation([index], 40) for index in range(2)]
    search = Beams(np.array([1]), Inbox(), params=BeamParams(3, 3, 5, None))
    for sequence in (*streams, search):
        scheduler.submit(sequence)
    scheduler.start()
    for sequence in streams:
        inbox(sequence).tokens_and_end()
    assert isinstance(inbox(search).events.get(timeout=10), BeamsFinished)
    scheduler.stop()
    assert len(engine.runs) > 40
    assert idle <= 2


def test_streams_are_written_to_at_the_same_times() -> None:
    table = RowTable(3, SIZE)
    pending = PendingTokens(table, 3)
    for interval in (None, None, 0.5):
        table.append(generation([1], 9, interval=interval))
    for row, now in enumerate((100.01, 100.39, 100.2)):
        pending.take(row, now, 0.4)
    due = table.records["due"].tolist()
    assert due[:2] == pytest.approx([100.4, 100.4])
    assert due[2] == pytest.approx(100.7)  # It has asked for an interval of its own.


def test_many_streams_gather_for_longer_but_at_coinciding_times() -> None:
    policy = make_policy(0.005, 0.04, 1000.0)
    intervals = [policy.flush_interval(streams, 0.0) for streams in (1, 40, 41, 63, 64, 80, 81)]
    assert intervals == [0.04] * 2 + [0.08] * 4 + [0.16]


def test_tokens_gather_for_longer_where_telling_keeps_the_model_waiting() -> None:
    policy = make_policy(0.005, 0.04, 1000.0, emission_share=0.05)
    costs = StepCosts(policy)

    def interval(streams: int, policy: SchedulingPolicy = policy) -> float:
        return policy.flush_interval(streams, costs.emission_seconds(streams))

    assert interval(16) == 0.04
    costs.record_emission(16, 0.003)
    assert interval(16) == 0.08
    assert interval(17) == 0.08  # As far as it is known.
    costs.record_emission(100, 1.0)
    assert [interval(streams) for streams in (1, 100, 200, 400)] == [0.04, 0.16, 0.32, 0.64]
    assert interval(16, make_policy(0.005, 0.04, 1000.0)) == 0.04


def test_what_is_run_ahead_takes_a_twentieth_of_the_time_and_is_worth_it() -> None:
    costs = StepCosts(make_policy(0.005, 0.0, 1.0))
    available = (1, 2, 4, 8, 16)
    assert costs.prefill_length(1, 64, 100, available, now=100.0) == 0  # Nothing is known of so many rows.
    costs.record_run(64, 1, 0.004)
    assert costs.prefill_length(1, 64, 100, available, now=100.0) == 16  # Unknown, but hoped for.
    costs.record_prefill(1, 16, 0.0064)
    for _ in range(4):
        assert costs.prefill_length(1, 64, 100, available, now=100.0) == 8  # As much as four chunks in a row,
        costs.record_prefill(1, 8, 0.0032)
    for count in (1, 2, 4):
        costs.record_prefill(1, count, 0.0004 * count)
    assert costs.prefill_length(1, 64, 100, available, now=100.07) == 2  # and then a twentieth of the time.
    assert costs.prefill_length(1, 64, 100, available, now=200.0) == 8  # No run is longer than a chunk.
    assert costs.prefill_length(1, 64, 7, available, now=200.0) == 4
    for count in available:
        costs.record_prefill(20, count, 0.0021 * count)
    for _ in range(3):  # They would keep the others waiting for too long,
        assert costs.prefill_length(20, 64, 2, available, now=300.0) == 0
    assert costs.prefill_length(20, 64, 2, available, now=300.0) == 2  # but that may have been a bad moment.
    for _ in range(4):
        assert costs.take_step_from_budget(64, now=400.0)  # From the same time, a step each.
        costs.record_prefill(4, 1, 0.001)
    assert not costs.take_step_from_budget(64, now=400.0)
    assert costs.prefill_length(4, 64, 1, available, now=400.0) == 0


def test_a_newcomer_reads_ahead_and_nobody_is_told_anything_else(engine: FakeEngine, scheduler: Scheduler) -> None:
    others = [generation([2], 400), generation([5, 5], 400)]
    started_at = []
    for other in others:
        scheduler.submit(other)
        started_at.append(inbox(other).events.get(timeout=10))
    engine.seconds = {1: 0.0001, 2: 0.002, 3: 0.003, 4: 0.004}
    prompts = [[1 + (length + index) % 8 for index in range(length)] for length in (30, 2, 61, 1, 17)]
    for prompt in prompts:
        sequence = generation(prompt, 9, snapshot_steps=5, keep_state=True)
        scheduler.submit(sequence)
        events = list[Event]()
        while not events or not isinstance(events[-1], Finished):
            events.append(inbox(sequence).events.get(timeout=10))
        tokens = [token for event in events if isinstance(event, Tokens) for token in event.ids]
        assert tokens == continuation(prompt, 9)
        read = (prompt + tokens)[:-1]
        for event in events:
            if isinstance(event, Snapshot | Finished):
                assert event.state == {"total": sum(read[: event.position])}
    assert sum(rows * steps for rows, steps in engine.ahead) > sum(map(len, prompts)) / 4
    for other, first in zip(others, started_at, strict=True):
        assert [*first.ids, *inbox(other).tokens_and_end()[0]] == continuation(other.forced.tolist(), 400)


def test_a_prompt_is_read_ahead_in_as_many_runs_as_it_takes(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as there are runs of few numbers of steps only."""

    def prefill_length(
        costs: StepCosts, rows: int, all_rows: int, most: int, available: tuple[int, ...], now: float
    ) -> int:
        return max((count for count in available if count <= most), default=0)  # There is time for all of it.

    monkeypatch.setattr(StepCosts, "prefill_length", prefill_length)
    scheduler = make_scheduler(engine)
    scheduler.start()
    engine.seconds = {1: 0.001, 2: 0.001}
    other = generation([2], 400)
    scheduler.submit(other)
    inbox(other).events.get(timeout=10)
    run = engine.run

    def watched(rows: range, chunk: Any, *, partition: int | None = None) -> Any:
        engine.ahead.append((0, 0))
        return run(rows, chunk, partition=partition)

    monkeypatch.setattr(engine, "run", watched)
    newcomer = generation([1, 2, 3, 4, 5, 6, 7, 8], 2)
    scheduler.submit(newcomer)
    assert inbox(newcomer).tokens_and_end()[0] == continuation([1, 2, 3, 4, 5, 6, 7, 8], 2)
    scheduler.stop()
    first = engine.ahead.index((1, 4))
    assert engine.ahead[first : first + 3] == [(1, 4), (1, 2), (1, 1)]


def test_who_comes_while_a_prompt_is_read_ahead_reads_with_it(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepCosts, "prefill_length", lambda costs, rows, all_rows, most, available, now: int(most > 0))
    scheduler = make_scheduler(engine)
    scheduler.start()
    other, first, second = generation([2], 400), generation([1] * 30, 2), generation([3] * 30, 2)
    scheduler.submit(other)
    inbox(other).events.get(timeout=10)
    prefill = engine.prefill

    def watched(rows: range, inputs: Any) -> None:
        if not engine.ahead:
            scheduler.submit(second)
        prefill(rows, inputs)

    monkeypatch.setattr(engine, "prefill", watched)
    scheduler.submit(first)
    assert inbox(first).tokens_and_end()[0] == continuation([1] * 30, 2)
    assert inbox(second).tokens_and_end()[0] == continuation([3] * 30, 2)
    scheduler.stop()
    assert engine.ahead[:2] == [(1, 1), (2, 1)]


@pytest.mark.parametrize("patience", [0.0, 10.0])
def test_whoever_comes_is_let_in_before_others_are_told_what_has_gathered(engine: FakeEngine, patience: float) -> None:
    """For as long as they have patience."""
    told: list[list[Emission]] = []

    def deliver(emissions: list[Emission]) -> None:
        if emissions:
            told.append(emissions)
        hand_over(emissions)

    scheduler = make_scheduler(engine, deliver=deliver, policy=make_policy(first_token_patience_seconds=patience))
    scheduler.start()
    other, newcomer = generation([2], 400), generation([5], 2)
    engine.seconds = {1: 0.001, 2: 0.001}
    scheduler.submit(other)
    inbox(other).events.get(timeout=10)
    engine.gate.clear()
    time.sleep(0.1)  # The next run has begun.
    before = len(told)
    scheduler.submit(newcomer)
    engine.gate.set()
    inbox(newcomer).tokens_and_end()
    scheduler.stop()
    assert (newcomer.receiver in [receiver for receiver, _ in told[before]]) == (patience > 0)


def test_first_tokens_are_told_first(engine: FakeEngine) -> None:
    told: list[list[Emission]] = []

    def deliver(emissions: list[Emission]) -> None:
        told.append(emissions)
        hand_over(emissions)

    scheduler = make_scheduler(engine, deliver=deliver)
    scheduler.start()
    others = [generation([2], 300), generation([5], 300)]
    for other in others:
        scheduler.submit(other)
        inbox(other).events.get(timeout=10)
    engine.seconds = {2: 0.001, 3: 0.001}
    newcomer = generation([1, 2], 2)
    scheduler.submit(newcomer)
    inbox(newcomer).tokens_and_end()
    scheduler.stop()
    together = next(emissions for emissions in told if newcomer.receiver in [receiver for receiver, _ in emissions])
    assert len(together) > 1
    assert together[0][0] is newcomer.receiver


def test_who_fails_ahead_fails_alone(engine: FakeEngine, scheduler: Scheduler) -> None:
    other = generation([2], 300)
    scheduler.submit(other)
    first = inbox(other).events.get(timeout=10)
    engine.seconds = {1: 0.0001, 2: 0.002}
    bad = generation([1] * 20 + [POISON] + [1] * 20, 9)
    scheduler.submit(bad)
    assert isinstance(inbox(bad).tokens_and_end()[1], Failed)
    assert isinstance(first, Tokens)
    assert list(first.ids) + inbox(other).tokens_and_end()[0] == continuation([2], 300)


def test_a_run_that_was_disturbed_changes_little() -> None:
    costs = StepCosts(make_policy(0.005, 0.0, 1.0))
    for seconds in (0.001, 0.001, 0.1, 0.001):
        costs.record_run(5, 1, seconds)
    assert costs.run_length(5, 100, (1, 2, 4, 8)) == 4


def test_a_chunk_takes_no_longer_than_it_may() -> None:
    costs = StepCosts(make_policy(0.005, 0.0, 1.0))
    available = (1, 2, 4, 8)
    assert costs.run_length(5, 100, available) == 1  # Nothing is known yet.
    costs.record_run(5, 1, 0.001)
    assert costs.run_length(5, 100, available) == 4
    assert costs.run_length(7, 100, available) == 4
    assert costs.run_length(7, 3, available) == 4  # One step of four is of no use: still faster than 2 and 1.
    assert costs.run_length(7, 3, available, exact=True) == 2
    assert costs.run_length(7, 2, available) == 2
    assert costs.run_length(8, 100, available) == 1
    for _ in range(30):
        costs.record_run(6, 4, 0.1)
    assert costs.run_length(5, 100, available) == 1


def test_the_first_token_comes_at_once_and_the_others_gather(engine: FakeEngine) -> None:
    engine.step_counts = (1, 2, 4, 8)
    scheduler = make_scheduler(engine, policy=make_policy(messages_per_second=1e-9))
    scheduler.start()
    gathering, prompt = generation([1], 1000), generation([1], 12, interval=0.0)
    scheduler.submit(gathering)
    first = inbox(gathering).events.get(timeout=10)
    assert first == Tokens(tuple(continuation([1], 1)))
    rest, _ = inbox(gathering).tokens_and_end()
    assert list(first.ids) + rest == continuation([1], 1000)
    scheduler.submit(prompt)
    events = [inbox(prompt).events.get(timeout=10) for _ in range(3)]
    assert [len(event.ids) for event in events if isinstance(event, Tokens)] == [1, 8, 3]
    scheduler.stop()


def test_tokens_gather_for_an_interval_but_not_beyond_what_there_is_room_for(scheduler: Scheduler) -> None:
    sequence = generation([1], 2000, interval=60.0)
    scheduler.submit(sequence)
    sizes = []
    while isinstance(event := inbox(sequence).events.get(timeout=10), Tokens):
        sizes.append(len(event.ids))
    assert sum(sizes) == 2000
    assert sizes[0] == 1
    assert 7 <= len(sizes) <= 12


def test_reading_shows_the_last_step_or_every_step_and_its_state(scheduler: Scheduler) -> None:
    last, every = reading([1, 2, 3]), reading([1, 2, 3], every_step=True, keep_state=True)
    for sequence in (last, every):
        scheduler.submit(sequence)
    event = inbox(last).events.get(timeout=10)
    assert isinstance(event, ReadingFinished)
    assert event.outputs.argmax(axis=1).tolist() == [6]
    assert event.state is None
    event = inbox(every).events.get(timeout=10)
    assert isinstance(event, ReadingFinished)
    assert event.outputs.argmax(axis=1).tolist() == [1, 3, 6]
    assert event.state == {"total": 6}


def test_reading_goes_on_from_a_state(scheduler: Scheduler) -> None:
    first = reading([4, 5], keep_state=True)
    scheduler.submit(first)
    event = inbox(first).events.get(timeout=10)
    assert isinstance(event, ReadingFinished)
    second = Reading(np.array([1]), Inbox(), event.state, every_step=False)
    scheduler.submit(second)
    event = inbox(second).events.get(timeout=10)
    assert isinstance(event, ReadingFinished)
    assert event.outputs.argmax(axis=1).tolist() == [10 % MODULUS]


def test_step_that_fails_ends_only_the_sequence_at_fault(scheduler: Scheduler, engine: FakeEngine) -> None:
    engine.gate.clear()
    good = [generation([1, 2, 3], 10), generation([4], 10)]
    bad = generation([1, POISON], 10)
    for sequence in (good[0], bad, good[1]):
        scheduler.submit(sequence)
    engine.gate.set()
    tokens, end = inbox(bad).tokens_and_end()
    assert tokens == []
    assert isinstance(end, Failed)
    assert isinstance(end.error, ModelFailedError)
    for sequence in good:
        assert inbox(sequence).tokens_and_end()[0] == continuation(sequence.forced.tolist(), 10)


def test_a_lone_reading_that_fails_is_told_so(scheduler: Scheduler) -> None:
    sequence = reading([1, 2, POISON, 3], every_step=True)
    scheduler.submit(sequence)
    end = inbox(sequence).events.get(timeout=10)
    assert isinstance(end, Failed)
    assert "the model failed on this input" in str(end.error)


def test_a_row_that_fails_in_a_chunk_takes_nothing_from_anybody(engine: FakeEngine) -> None:
    """The chunk is run again step by step: all get the tokens that they would have got one at a time."""
    scheduler = make_scheduler(engine)
    good, bad = generation([1], 12, interval=0.0), generation([1, 2, 3, 4, 5, POISON], 12)
    for sequence in (good, bad):
        scheduler.submit(sequence)
    scheduler.start()
    assert inbox(good).tokens_and_end()[0] == continuation([1], 12)
    assert isinstance(inbox(bad).tokens_and_end()[1], Failed)
    scheduler.stop()


@pytest.mark.parametrize("late", ["keeps its state", "waits for a row"])
def test_who_comes_in_the_middle_of_a_turn_disturbs_nobody(
    scheduler: Scheduler, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """After those who waited have been let in, and before it is known how many steps are run."""
    keeps = late == "keeps its state"
    newcomers: list[Generation] = []

    def arriving(table: RowTable, others_wait: bool) -> Horizon:
        if len(newcomers) < 20:
            newcomers.append(generation([2, 3], 5, keep_state=keeps))
            scheduler.submit(newcomers[-1])
        return horizon(table, others_wait)

    monkeypatch.setattr(planning, "horizon", arriving)
    sequences = [generation([index + 1], 40 + 7 * index) for index in range(engine.capacity)]
    engine.gate.clear()
    for sequence in sequences:
        scheduler.submit(sequence)
    engine.gate.set()
    for sequence in sequences:
        expected = continuation(sequence.forced.tolist(), sequence.params.max_tokens)
        assert inbox(sequence).tokens_and_end()[0] == expected
    for newcomer in newcomers:
        assert inbox(newcomer).tokens_and_end()[0] == continuation([2, 3], 5)
    assert newcomers
    until_running(scheduler, 0)
    assert all(inbox(sequence).events.empty() for sequence in (*sequences, *newcomers))  # Nobody ends twice.


def test_output_that_is_not_finite_ends_only_its_sequence(scheduler: Scheduler) -> None:
    bad, good = generation([NAN], 5), generation([1], 5)
    scheduler.submit(bad)
    scheduler.submit(good)
    end = inbox(bad).tokens_and_end()[1]
    assert isinstance(end, Failed)
    assert "not finite" in str(end.error)
    assert inbox(good).tokens_and_end()[0] == continuation([1], 5)


def test_aborted_sequence_frees_its_row_and_hears_nothing_more(scheduler: Scheduler, engine: FakeEngine) -> None:
    endless = [generation([index + 1], 10**6) for index in range(engine.capacity)]
    for sequence in endless:
        scheduler.submit(sequence)
    for sequence in endless:
        inbox(sequence).events.get(timeout=10)
    assert scheduler.running_count == engine.capacity
    for sequence in endless:
        scheduler.abort(sequence)
        scheduler.abort(sequence)  # Twice is as good as once.
    for _ in range(2):
        late = generation([3], 4)
        scheduler.submit(late)
        assert inbox(late).tokens_and_end()[0] == continuation([3], 4)
        for sequence in endless:  # What came before the abort; the second time there is nothing.
            heard = inbox(sequence).events.qsize()
            for _ in range(heard):
                assert isinstance(inbox(sequence).events.get(), Tokens)
    assert heard == 0
    until_running(scheduler, 0)


def test_sequence_aborted_while_it_waits_never_runs() -> None:
    engine = FakeEngine(capacity=1)
    scheduler = make_scheduler(engine)
    aborted, kept = generation([POISON], 5), generation([2], 3)
    scheduler.submit(aborted)
    scheduler.submit(kept)
    scheduler.abort(aborted)
    scheduler.start()
    assert inbox(kept).tokens_and_end()[0] == continuation([2], 3)
    scheduler.stop()
    assert inbox(aborted).events.empty()


def test_waiting_room_is_bounded_and_aborting_makes_room() -> None:
    engine = FakeEngine(capacity=1)
    scheduler = make_scheduler(engine, waiting_limit=2)
    waiting = [generation([1], 1) for _ in range(3)]  # One of them for the free row.
    for sequence in waiting:
        scheduler.submit(sequence)
    with pytest.raises(QueueFullError):
        scheduler.submit(generation([1], 1))
    continued = Reading(np.array([1]), Inbox(), {"total": np.array(3)}, every_step=False)
    scheduler.submit(continued, always=True)
    scheduler.abort(waiting[0])
    scheduler.abort(continued)
    scheduler.submit(generation([1], 1))
    scheduler.start()
    assert inbox(waiting[1]).tokens_and_end()[0] == [1]
    scheduler.stop()


def test_stop_tells_those_who_run_and_those_who_wait() -> None:
    engine = FakeEngine(capacity=1)
    scheduler = make_scheduler(engine)
    scheduler.start()
    running, waiting = generation([1], 10**6), generation([1], 1)
    scheduler.submit(running)
    inbox(running).events.get(timeout=10)
    scheduler.submit(waiting)
    scheduler.stop()
    for sequence in (running, waiting):
        end = inbox(sequence).tokens_and_end()[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, ServerDrainingError)
    with pytest.raises(ServerDrainingError):
        scheduler.submit(generation([1], 1))


@pytest.mark.parametrize("part", ["schedule", "_sample", "_collect", "_due_events"])
def test_defect_in_the_loop_is_told_and_survived(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    broken = threading.Event()

    def explode(*arguments: object, **options: object) -> None:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("a defect")

    monkeypatch.setattr(scheduler._batch, part, explode)
    victim = generation([1], 1000)
    scheduler.submit(victim)
    end = inbox(victim).tokens_and_end()[1]
    assert isinstance(end, Failed)
    monkeypatch.undo()
    later = generation([2], 3)
    scheduler.submit(later)
    assert inbox(later).tokens_and_end()[0] == continuation([2], 3)


@pytest.mark.parametrize("interval", [None, 1000.0])
def test_snapshots_come_after_the_tokens_they_have_read_and_can_be_continued(
    scheduler: Scheduler, interval: float | None
) -> None:
    prompt, count = [3, 1, 4, 1, 5, 1, 2], 30
    sequence = generation(prompt, count, snapshot_steps=5, interval=interval)
    scheduler.submit(sequence)
    known, snapshots = list(prompt), list[Snapshot]()
    while not isinstance(event := inbox(sequence).events.get(timeout=10), Finished):
        if isinstance(event, Tokens):
            known += event.ids
        else:
            assert isinstance(event, Snapshot)
            assert event.state == {"total": sum(known[: event.position])}
            assert event.position <= len(known)
            snapshots.append(event)
    positions = [snapshot.position for snapshot in snapshots]
    assert positions == sorted(positions)
    assert min(np.diff([0, *positions])) >= 5
    assert max(np.diff([0, *positions])) < 10  # A chunk has four steps at most.
    assert positions[0] < len(prompt) + 4
    for snapshot in snapshots:
        seen = max(len(prompt), snapshot.position + 1)
        left = len(prompt) + count - seen
        later = generation(known[snapshot.position : seen], left, state=snapshot.state, position=snapshot.position)
        scheduler.submit(later)
        tokens, end = inbox(later).tokens_and_end()
        assert tokens == known[seen:]
        assert end == Finished(FinishReason.MAX_TOKENS, len(known) - 1)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_prompt_tells_its_state_just_before_its_last_token_and_nothing_behind_it(
    engine: FakeEngine, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ahead:
        monkeypatch.setattr(StepCosts, "prefill_length", lambda *_args: 0)
    scheduler = make_scheduler(engine)
    scheduler.start()
    others = [generation([2], 10**6), generation([5, 5], 10**6)]
    for other in others:
        scheduler.submit(other)
        inbox(other).events.get(timeout=10)
    for length in (2, 3, 7, 19, 20, 21, 22):
        prompt = np.random.default_rng(length).integers(1, NAN, length).tolist()
        sequence = generation(prompt, 30, snapshot_steps=5, snapshots_prompt=True)
        scheduler.submit(sequence)
        events = list[Event]()
        while not events or not isinstance(events[-1], Finished):
            events.append(inbox(sequence).events.get(timeout=10))
        snapshots = [event for event in events if isinstance(event, Snapshot)]
        assert snapshots[-1] == Snapshot(length - 1, {"total": sum(prompt[:-1])})
        assert all(snapshot.state == {"total": sum(prompt[: snapshot.position])} for snapshot in snapshots)
        assert ahead or len(snapshots) >= length // 10  # What is read ahead, is read past them.
    scheduler.stop()
