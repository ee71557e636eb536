"""Row partitions in an iteration: each runs at its own speed, and results equal those without partitions."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from elman_server.engine import FREE, Chunk
from elman_server.errors import ModelFailedError
from elman_server.scheduling import Failed, Finished, FinishReason, Generation
from elman_server.scheduling.costs import StepCosts
from elman_server.scheduling.rows.execution import Execution, ModelOutput
from elman_server.scheduling.rows.horizon import Horizon
from elman_server.scheduling.rows.planning import Schedule
from tests.support.fake_engine import POISON, SIZE, FakeEngine, continuation
from tests.support.scheduling import generation, inbox, make_policy, make_scheduler, reading, until_running

SLOW = 0.005  # seconds per step
POLICY = make_policy(0.01, 0.1)


def uneven(capacity: int = 5, partitions: int = 2) -> FakeEngine:
    """Return an engine in which two of five rows run fast and three slowly."""
    engine = FakeEngine(capacity)
    engine.partition_count = partitions
    engine.seconds = {3: SLOW}
    return engine


def run_iteration(
    engine: FakeEngine, tokens: list[int], steps: int, seconds: float, **changes: object
) -> ModelOutput | None:
    """Execute an iteration of rows that read a token and then generate."""
    rows = len(tokens)
    inputs = np.full((rows, steps), FREE)
    inputs[:, 0] = tokens
    for row in range(rows):
        engine.insert(row)
    ones = np.ones(rows, np.float32)
    nothing = np.zeros(rows, np.float32)
    chunk = Chunk({"token": inputs}, np.zeros((rows, steps), np.float32), ones, np.full(rows, SIZE), ones, nothing)
    until = time.perf_counter() + seconds
    schedule = Schedule(chunk, 1, Horizon(steps, steps - 1, None), (1,), until)
    end_tokens = np.full((rows, 1), changes.get("end_token", -1))
    with ThreadPoolExecutor() as executor:
        return Execution(engine, StepCosts(POLICY), schedule, lambda: False, end_tokens).run(executor)


def test_partitions_do_not_wait_for_slower_ones() -> None:
    engine = uneven()
    output = run_iteration(engine, [1, 2, 3, 4, 5], steps=1000, seconds=0.1)
    assert output is not None
    assert output.uncommitted == [range(2), range(2, 5)]
    fast, slow = output.counts[0], output.counts[2]
    assert output.counts.tolist() == [fast] * 2 + [slow] * 3
    assert fast > 2 * slow
    assert slow >= 2
    for row, count in enumerate(output.counts.tolist()):
        assert output.results.tokens[row, :count].tolist() == continuation([row + 1], count)
        assert not output.results.tokens[row, count:].any()
        assert output.committed[row] == count - 1
    for rows in output.uncommitted:
        engine.commit(rows)
    for row, count in enumerate(output.counts.tolist()):
        assert engine.extract(row)["total"] == sum([row + 1, *continuation([row + 1], count - 1)])


def test_end_in_one_partition_ends_all_after_their_current_run() -> None:
    engine = uneven()
    # Rows that start with 7 and 8 always generate 7 and 8; the others eventually generate 5.
    output = run_iteration(engine, [7, 8, 7, 8, 5], steps=1000, seconds=10, end_token=5)
    assert output is not None
    assert output.counts[2] == 1
    assert output.counts[0] < 1000


@pytest.mark.parametrize("partitions", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_sequences_equal_those_without_batching(seed: int, partitions: int) -> None:
    chance = random.Random(seed)
    engine = uneven(partitions=partitions)
    scheduler = make_scheduler(engine, policy=POLICY)
    sequences: list[tuple[Generation, list[int], int]] = []
    for number in range(12):
        prompt = [chance.randrange(1, POISON - 1) for _ in range(chance.randrange(1, 9))]
        count = chance.randrange(1, 60)
        options = {"keep_state": True} if number % 3 == 0 else {}
        end_token = chance.randrange(1, 9) if number % 2 else None
        sequences.append((generation(prompt, count, end_token, **options), prompt, count))
    for sequence, _, _ in sequences:
        scheduler.submit(sequence)
    scheduler.start()
    for sequence, prompt, count in sequences:
        tokens, end = inbox(sequence).tokens_and_end()
        expected = continuation(prompt, count)
        reason, end_token = FinishReason.MAX_TOKENS, sequence.params.end_token
        if end_token in expected:
            expected, reason = expected[: expected.index(end_token)], FinishReason.END_TOKEN
        assert tokens == expected
        assert isinstance(end, Finished)
        assert end.reason is reason
        if sequence.keep_state:
            assert end.state is not None
            assert end.position == len(prompt) + len(expected) - 1  # the last token is not read
            assert end.state["total"] == sum([*prompt, *expected][:-1])
    scheduler.stop()


def test_failure_affects_only_its_own_sequence() -> None:
    engine = uneven()
    good = [generation([token], 40) for token in (1, 2, 3, 4)]
    bad = generation([1] * 9 + [POISON], 40)
    run = [good[0], good[1], bad, good[2], good[3]]
    scheduler = make_scheduler(engine, policy=POLICY)
    for sequence in run:
        scheduler.submit(sequence)
    scheduler.start()
    _, end = inbox(bad).tokens_and_end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, ModelFailedError)
    for token, sequence in zip((1, 2, 3, 4), good, strict=True):
        assert inbox(sequence).tokens_and_end()[0] == continuation([token], 40)
    scheduler.stop()


def test_readings_in_partitions_receive_their_own_outputs() -> None:
    engine = uneven()
    scheduler = make_scheduler(engine)
    tokens = [[1, 2], [3, 4], [5], [6, 7, 1], [2, 2, 2, 2]]
    sequences = [reading(ids, every_step=True) for ids in tokens]
    for sequence in sequences:
        scheduler.submit(sequence)
    scheduler.start()
    for ids, sequence in zip(tokens, sequences, strict=True):
        end = inbox(sequence).events.get(timeout=10)
        assert end.outputs.argmax(axis=1).tolist() == (np.cumsum(ids) % 9).tolist()
    until_running(scheduler, 0)
    scheduler.stop()
