"""The scheduler with a fake engine whose outputs can be computed by hand."""

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
    deliver_events,
    generation,
    inbox,
    make_policy,
    make_scheduler,
    reading,
    submitting,
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
    """Submit sequences, start the scheduler, wait until all have finished, and stop it."""
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


def test_state_of_a_completed_constraint_precedes_its_last_token(scheduler: Scheduler) -> None:
    grammars = Grammars([None, *(letter.encode() for letter in LETTERS[1:])], None)
    grammar = grammars.compile(Constraint(ConstraintKind.REGEX, "a[0-9]?"))
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=9, grammar=grammar)
    sequence = Generation(np.array([3]), Inbox(), params=params, keep_state=True)
    scheduler.submit(sequence)
    expected = Finished(FinishReason.CONSTRAINT, 1, {"total": np.array(3)})
    assert inbox(sequence).tokens_and_end() == ([LETTERS.index("a")], expected)


def test_time_limit_ends_waiting_requests(scheduler: Scheduler) -> None:
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


def test_end_token_ends_generation_and_is_not_emitted(scheduler: Scheduler) -> None:
    expected = continuation([1, 2], 20)
    end = expected[4]
    sequence = generation([1, 2], max_tokens=20, end_token=end)
    scheduler.submit(sequence)
    shown = expected[: expected.index(end)]
    assert inbox(sequence).tokens_and_end() == (shown, Finished(FinishReason.END_TOKEN, 1 + len(shown)))


@pytest.mark.parametrize("prompt", [[1], [1, 2], [3, 1, 4, 1, 5]])
@pytest.mark.parametrize("end_after", [1, 2, 3, 4, 5, 6, None])
def test_final_state_is_correct_wherever_in_a_chunk_the_sequence_ends(
    engine: FakeEngine, scheduler: Scheduler, prompt: list[int], end_after: int | None
) -> None:
    tokens = continuation(prompt, 40)
    # Other sequences run, so that chunks do not end where this sequence ends.
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
    # The state excludes the last token, so that its successor can be sampled again.
    seen = (prompt + shown)[:-1]
    assert finished.position == len(seen)
    assert finished.state == {"total": sum(seen)}
    for other in others:
        scheduler.abort(other)


def test_row_that_ends_early_in_a_chunk_is_replayed_if_its_state_is_kept(
    engine: FakeEngine, scheduler: Scheduler
) -> None:
    tokens = continuation([1, 2], 40)
    sequence = generation([1, 2], 30, end_token=tokens[1], keep_state=True)
    scheduler.submit(sequence)
    inbox(sequence).tokens_and_end()
    assert engine.replays  # otherwise this test and the one above prove nothing
    unkept = generation([1, 2], 30, end_token=tokens[1])
    engine.replays.clear()
    scheduler.submit(unkept)
    inbox(unkept).tokens_and_end()
    assert not engine.replays  # the state is not kept


def test_sequences_of_all_lengths_share_the_batch(scheduler: Scheduler, engine: FakeEngine) -> None:
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


def test_new_request_joins_at_the_next_step(scheduler: Scheduler, engine: FakeEngine) -> None:
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
    # The duration of a new batch size is unknown, so its first run takes one step.
    assert [count for _, count in engine.runs] == [1, 4, 4, 2]


def test_chunk_ends_with_the_first_prompt_while_all_rows_prefill(engine: FakeEngine) -> None:
    run_together(make_scheduler(engine), [generation([1] * 8, 1), generation([2] * 9, 1)])
    # The last step of a prompt gives the first token: 1 + 4 + 2 + 1 steps, and one more for the longer prompt.
    assert engine.runs == [(2, 1), (2, 4), (2, 2), (2, 1), (1, 1)]


def test_chunk_ends_with_the_first_sequence_while_requests_wait_for_a_row() -> None:
    engine = FakeEngine(capacity=2)
    run_together(make_scheduler(engine), [generation([1], length) for length in (7, 100, 5)])
    # Two rows take one step, then the 6 remaining steps of the first: 4 and 2. Then the waiting request joins, and the
    # run ends with its first token.
    assert engine.runs[:5] == [(2, 1), (2, 4), (2, 2), (2, 1), (2, 4)]


def test_calls_that_arrive_during_admission_start_in_the_same_iteration(engine: FakeEngine) -> None:
    sequences = [generation([index + 1], 5) for index in range(3)]
    deliver = submitting(list(sequences), lambda sequence: scheduler.submit(sequence))
    scheduler = make_scheduler(engine, deliver=deliver)
    deliver([])
    scheduler.start()
    for sequence in sequences:
        assert inbox(sequence).tokens_and_end()[0] == continuation(sequence.forced.tolist(), 5)
    scheduler.stop()
    assert engine.runs[0][0] == 3


@pytest.mark.parametrize("running", [0, 12])
def test_running_requests_wait_for_a_burst_of_arrivals_but_not_for_a_few(running: int) -> None:
    """Ten calls arrive 4 ms apart, while no requests or more than ten requests are running."""
    engine = FakeEngine(capacity=30)
    crowd = [generation([1], 3) for _ in range(10)]
    upcoming = list[Generation]()

    def deliver(emissions: list[Emission]) -> None:
        deliver_events(emissions)
        if upcoming:
            time.sleep(0.004)
            scheduler.submit(upcoming.pop(0))

    scheduler = make_scheduler(engine, deliver=deliver, policy=make_policy(1e-9))  # one step per run
    before = [generation([2], 10**6) for _ in range(running)]
    for sequence in before:
        scheduler.submit(sequence)
    scheduler.start()
    until_running(scheduler, running)
    upcoming += crowd[1:]
    scheduler.submit(crowd[0])
    for sequence in crowd:
        inbox(sequence).tokens_and_end()
    scheduler.stop()
    sizes = [rows for rows, _ in engine.runs if rows > running]
    assert (sizes[0] == 10) == (running == 0)


def test_request_that_waits_for_rows_does_not_delay_iterations() -> None:
    """While a search of 3 waits with 2 free rows, no iteration waits for further arrivals."""
    engine, idle = FakeEngine(capacity=4), 0

    def deliver(emissions: list[Emission]) -> None:
        nonlocal idle
        idle += not emissions
        deliver_events(emissions)

    scheduler = make_scheduler(engine, deliver=deliver, policy=make_policy(1e-9))  # one step per run
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


def test_streams_are_flushed_at_coinciding_times() -> None:
    table = RowTable(3, SIZE)
    pending = PendingTokens(table, 3)
    for interval in (None, None, 0.5):
        table.append(generation([1], 9, interval=interval))
    for row, now in enumerate((100.01, 100.39, 100.2)):
        pending.take(row, now, 0.4)
    due = table.records["due"].tolist()
    assert due[:2] == pytest.approx([100.4, 100.4])
    assert due[2] == pytest.approx(100.7)  # it has requested its own interval


def test_flush_interval_grows_with_the_number_of_streams() -> None:
    policy = make_policy(0.005, 0.04, 1000.0)
    intervals = [policy.flush_interval(streams, 0.0) for streams in (1, 40, 41, 63, 64, 80, 81)]
    assert intervals == [0.04] * 2 + [0.08] * 4 + [0.16]


def test_flush_interval_grows_with_the_cost_of_emission() -> None:
    policy = make_policy(0.005, 0.04, 1000.0, emission_share=0.05)
    costs = StepCosts(policy)

    def interval(streams: int, policy: SchedulingPolicy = policy) -> float:
        return policy.flush_interval(streams, costs.emission_seconds(streams))

    assert interval(16) == 0.04
    costs.record_emission(16, 0.003)
    assert interval(16) == 0.08
    assert interval(17) == 0.08  # the closest known cost
    costs.record_emission(100, 1.0)
    assert [interval(streams) for streams in (1, 100, 200, 400)] == [0.04, 0.16, 0.32, 0.64]
    assert interval(16, make_policy(0.005, 0.04, 1000.0)) == 0.04


def test_prefill_has_a_bounded_share_of_the_time() -> None:
    costs = StepCosts(make_policy(0.005, 0.0, 1.0))
    available = (1, 2, 4, 8, 16)
    assert costs.prefill_length(1, 64, 100, available, now=100.0) == 0  # the cost of 64 rows is unknown
    costs.record_run(64, 1, 0.004)
    assert costs.prefill_length(1, 64, 100, available, now=100.0) == 16  # an optimistic estimate
    costs.record_prefill(1, 16, 0.0064)
    for _ in range(4):
        assert costs.prefill_length(1, 64, 100, available, now=100.0) == 8  # as much as four chunks in a row,
        costs.record_prefill(1, 8, 0.0032)
    for count in (1, 2, 4):
        costs.record_prefill(1, count, 0.0004 * count)
    assert costs.prefill_length(1, 64, 100, available, now=100.07) == 2  # and then a twentieth of the time
    assert costs.prefill_length(1, 64, 100, available, now=200.0) == 8  # no run is longer than a chunk
    assert costs.prefill_length(1, 64, 7, available, now=200.0) == 4
    for count in available:
        costs.record_prefill(20, count, 0.0021 * count)
    for _ in range(3):  # too slow to be accepted,
        assert costs.prefill_length(20, 64, 2, available, now=300.0) == 0
    assert costs.prefill_length(20, 64, 2, available, now=300.0) == 2  # but a rejected estimate decays
    for _ in range(4):
        assert costs.take_step_from_budget(64, now=400.0)  # one step each from the same budget
        costs.record_prefill(4, 1, 0.001)
    assert not costs.take_step_from_budget(64, now=400.0)
    assert costs.prefill_length(4, 64, 1, available, now=400.0) == 0


def test_prefill_of_new_requests_does_not_change_any_output(engine: FakeEngine, scheduler: Scheduler) -> None:
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


def test_prompt_is_prefilled_in_several_runs(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs follow one another, because only a few step counts are available."""

    def prefill_length(
        costs: StepCosts, rows: int, all_rows: int, most: int, available: tuple[int, ...], now: float
    ) -> int:
        return max((count for count in available if count <= most), default=0)  # an unlimited budget

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
    new_request = generation([1, 2, 3, 4, 5, 6, 7, 8], 2)
    scheduler.submit(new_request)
    assert inbox(new_request).tokens_and_end()[0] == continuation([1, 2, 3, 4, 5, 6, 7, 8], 2)
    scheduler.stop()
    first = engine.ahead.index((1, 4))
    assert engine.ahead[first : first + 3] == [(1, 4), (1, 2), (1, 1)]


def test_request_that_arrives_during_a_prefill_joins_it(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_first_tokens_are_emitted_first(engine: FakeEngine) -> None:
    delivered: list[list[Emission]] = []

    def deliver(emissions: list[Emission]) -> None:
        delivered.append(emissions)
        deliver_events(emissions)

    scheduler = make_scheduler(engine, deliver=deliver)
    scheduler.start()
    others = [generation([2], 300), generation([5], 300)]
    for other in others:
        scheduler.submit(other)
        inbox(other).events.get(timeout=10)
    engine.seconds = {2: 0.001, 3: 0.001}
    new_request = generation([1, 2], 2)
    scheduler.submit(new_request)
    inbox(new_request).tokens_and_end()
    scheduler.stop()
    together = next(
        emissions for emissions in delivered if new_request.receiver in [receiver for receiver, _ in emissions]
    )
    assert len(together) > 1
    assert together[0][0] is new_request.receiver


def test_failed_prefill_does_not_affect_others(engine: FakeEngine, scheduler: Scheduler) -> None:
    other = generation([2], 300)
    scheduler.submit(other)
    first = inbox(other).events.get(timeout=10)
    engine.seconds = {1: 0.0001, 2: 0.002}
    bad = generation([1] * 20 + [POISON] + [1] * 20, 9)
    scheduler.submit(bad)
    assert isinstance(inbox(bad).tokens_and_end()[1], Failed)
    assert isinstance(first, Tokens)
    assert list(first.ids) + inbox(other).tokens_and_end()[0] == continuation([2], 300)


def test_chunk_length_respects_the_time_limit() -> None:
    costs = StepCosts(make_policy(0.005, 0.0, 1.0))
    available = (1, 2, 4, 8)
    assert costs.run_length(5, 100, available) == 1  # nothing is known yet
    costs.record_run(5, 1, 0.001)
    assert costs.run_length(5, 100, available) == 4
    assert costs.run_length(7, 100, available) == 4
    assert costs.run_length(7, 3, available) == 2
    assert costs.run_length(7, 2, available) == 2
    assert costs.run_length(8, 100, available) == 1
    for _ in range(30):
        costs.record_run(6, 4, 0.1)
    assert costs.run_length(5, 100, available) == 1


def test_first_token_is_emitted_immediately_and_the_others_are_coalesced(engine: FakeEngine) -> None:
    engine.step_counts = (1, 2, 4, 8)
    scheduler = make_scheduler(engine, policy=make_policy(messages_per_second=1e-9))
    scheduler.start()
    coalesced, prompt = generation([1], 1000), generation([1], 12, interval=0.0)
    scheduler.submit(coalesced)
    first = inbox(coalesced).events.get(timeout=10)
    assert first == Tokens(tuple(continuation([1], 1)))
    rest, _ = inbox(coalesced).tokens_and_end()
    assert list(first.ids) + rest == continuation([1], 1000)
    scheduler.submit(prompt)
    events = [inbox(prompt).events.get(timeout=10) for _ in range(4)]
    assert [len(event.ids) for event in events if isinstance(event, Tokens)] == [1, 8, 2, 1]
    scheduler.stop()


def test_tokens_are_coalesced_for_an_interval_up_to_the_capacity(scheduler: Scheduler) -> None:
    sequence = generation([1], 2000, interval=60.0)
    scheduler.submit(sequence)
    sizes = []
    while isinstance(event := inbox(sequence).events.get(timeout=10), Tokens):
        sizes.append(len(event.ids))
    assert sum(sizes) == 2000
    assert sizes[0] == 1
    assert 7 <= len(sizes) <= 12


def test_reading_returns_the_last_or_every_step_and_its_state(scheduler: Scheduler) -> None:
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


def test_reading_continues_from_a_state(scheduler: Scheduler) -> None:
    first = reading([4, 5], keep_state=True)
    scheduler.submit(first)
    event = inbox(first).events.get(timeout=10)
    assert isinstance(event, ReadingFinished)
    second = Reading(np.array([1]), Inbox(), event.state, every_step=False)
    scheduler.submit(second)
    event = inbox(second).events.get(timeout=10)
    assert isinstance(event, ReadingFinished)
    assert event.outputs.argmax(axis=1).tolist() == [10 % MODULUS]


def test_failed_step_ends_only_the_sequence_at_fault(scheduler: Scheduler, engine: FakeEngine) -> None:
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


def test_failed_single_reading_receives_an_error(scheduler: Scheduler) -> None:
    sequence = reading([1, 2, POISON, 3], every_step=True)
    scheduler.submit(sequence)
    end = inbox(sequence).events.get(timeout=10)
    assert isinstance(end, Failed)
    assert "the model failed on this input" in str(end.error)


def test_failed_row_in_a_chunk_does_not_affect_other_rows(engine: FakeEngine) -> None:
    """The chunk is repeated step by step; the other rows get the tokens of single steps."""
    scheduler = make_scheduler(engine)
    good, bad = generation([1], 12, interval=0.0), generation([1, 2, 3, 4, 5, POISON], 12)
    for sequence in (good, bad):
        scheduler.submit(sequence)
    scheduler.start()
    assert inbox(good).tokens_and_end()[0] == continuation([1], 12)
    assert isinstance(inbox(bad).tokens_and_end()[1], Failed)
    scheduler.stop()


@pytest.mark.parametrize("late", ["keeps its state", "waits for a row"])
def test_requests_that_arrive_during_planning_do_not_affect_others(
    scheduler: Scheduler, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """They arrive after the admission of waiting requests and before the number of steps is chosen."""
    keeps = late == "keeps its state"
    arrivals: list[Generation] = []

    def arriving(table: RowTable, others_wait: bool) -> Horizon:
        if len(arrivals) < 20:
            arrivals.append(generation([2, 3], 5, keep_state=keeps))
            scheduler.submit(arrivals[-1])
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
    for new_request in arrivals:
        assert inbox(new_request).tokens_and_end()[0] == continuation([2, 3], 5)
    assert arrivals
    until_running(scheduler, 0)
    assert all(inbox(sequence).events.empty() for sequence in (*sequences, *arrivals))  # no sequence ends twice


def test_non_finite_output_ends_only_its_sequence(scheduler: Scheduler) -> None:
    bad, good = generation([NAN], 5), generation([1], 5)
    scheduler.submit(bad)
    scheduler.submit(good)
    end = inbox(bad).tokens_and_end()[1]
    assert isinstance(end, Failed)
    assert "not finite" in str(end.error)
    assert inbox(good).tokens_and_end()[0] == continuation([1], 5)


def test_aborted_sequence_frees_its_row_and_receives_no_further_events(
    scheduler: Scheduler, engine: FakeEngine
) -> None:
    endless = [generation([index + 1], 10**6) for index in range(engine.capacity)]
    for sequence in endless:
        scheduler.submit(sequence)
    for sequence in endless:
        inbox(sequence).events.get(timeout=10)
    assert scheduler.running_count == engine.capacity
    for sequence in endless:
        scheduler.abort(sequence)
        scheduler.abort(sequence)  # aborting twice has no further effect
    for _ in range(2):
        late = generation([3], 4)
        scheduler.submit(late)
        assert inbox(late).tokens_and_end()[0] == continuation([3], 4)
        for sequence in endless:  # events from before the abort; none in the second round
            received_count = inbox(sequence).events.qsize()
            for _ in range(received_count):
                assert isinstance(inbox(sequence).events.get(), Tokens)
    assert received_count == 0
    until_running(scheduler, 0)


def test_sequence_aborted_while_waiting_never_runs() -> None:
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


def test_queue_is_bounded_and_aborting_frees_an_entry() -> None:
    engine = FakeEngine(capacity=1)
    scheduler = make_scheduler(engine, waiting_limit=2)
    waiting = [generation([1], 1) for _ in range(3)]  # one of them gets the free row
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


def test_stop_fails_running_and_waiting_requests() -> None:
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
def test_internal_error_in_the_loop_fails_requests_and_the_loop_continues(
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
def test_snapshots_follow_the_tokens_they_contain_and_can_be_continued(
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
    assert max(np.diff([0, *positions])) < 10  # a chunk has at most four steps
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
def test_last_prompt_snapshot_precedes_the_last_token(
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
        assert ahead or len(snapshots) >= length // 10  # prefill skips snapshots
    scheduler.stop()
