"""Sources in the scheduler: encoded in batches when their sequences get a row, once each, with isolated failures."""

from __future__ import annotations

import numpy as np
import pytest

from elman_server.errors import ModelFailedError
from elman_server.scheduling import Failed, Finished, Generation, Source
from tests.support.fake_engine import POISON, FakeEngine, continuation
from tests.support.scheduling import generation, inbox, make_scheduler, submitting, until_running

PROMPT = [1]


def from_source(source: Source, max_tokens: int = 6) -> Generation:
    return generation(PROMPT, max_tokens, source=source)


def expected(source: list[int], count: int = 6) -> list[int]:
    """Return the expected tokens: the sum of the source is the initial total, as if it preceded the prompt."""
    return continuation([*source, *PROMPT], count)


def test_sources_are_encoded_in_a_batch_and_start_their_own_sequences() -> None:
    engine = FakeEngine(capacity=4)
    scheduler = make_scheduler(engine)
    given = [[2], [3, 4], [5, 5, 5], [1, 2, 3, 4]]
    sequences = [from_source(Source(np.array(values))) for values in given]
    for sequence in sequences:
        scheduler.submit(sequence)
    scheduler.start()
    for values, sequence in zip(given, sequences, strict=True):
        tokens, end = inbox(sequence).tokens_and_end()
        assert isinstance(end, Finished)
        assert tokens == expected(values)
    scheduler.stop()
    assert engine.encoded == [4]


def test_sources_of_concurrent_calls_are_encoded_in_a_batch() -> None:
    engine = FakeEngine(capacity=4)
    sequences = [from_source(Source(np.array([index]))) for index in range(3)]
    deliver = submitting(list(sequences), lambda sequence: scheduler.submit(sequence))
    scheduler = make_scheduler(engine, deliver=deliver)
    deliver([])
    scheduler.start()
    for index, sequence in enumerate(sequences):
        assert inbox(sequence).tokens_and_end()[0] == expected([index])
    scheduler.stop()
    assert engine.encoded == [3]


def test_shared_source_is_encoded_once() -> None:
    engine = FakeEngine(capacity=2)
    scheduler = make_scheduler(engine)
    source = Source(np.array([2, 3]))
    sequences = [from_source(source) for _ in range(5)]
    for sequence in sequences:
        scheduler.submit(sequence)
    scheduler.start()
    for sequence in sequences:
        assert inbox(sequence).tokens_and_end()[0] == expected([2, 3])
    scheduler.stop()
    assert engine.encoded == [1]


def test_continued_state_does_not_restart_from_the_source() -> None:
    engine = FakeEngine()
    scheduler = make_scheduler(engine)
    scheduler.start()
    source = Source(np.array([2, 3]))
    sequence = generation(PROMPT, 4, source=source, state={"total": np.int64(7)})
    scheduler.submit(sequence)
    assert inbox(sequence).tokens_and_end()[0] == expected([7], 4)
    scheduler.stop()


@pytest.mark.parametrize("company", [0, 2])
def test_failing_source_does_not_affect_others(company: int) -> None:
    engine = FakeEngine(capacity=4)
    scheduler = make_scheduler(engine)
    bad = from_source(Source(np.array([1, POISON])))
    fine = [from_source(Source(np.array([2, index]))) for index in range(company)]
    for sequence in (bad, *fine):
        scheduler.submit(sequence)
    scheduler.start()
    tokens, end = inbox(bad).tokens_and_end()
    assert tokens == []
    assert isinstance(end, Failed)
    assert isinstance(end.error, ModelFailedError)
    for index, sequence in enumerate(fine):
        assert inbox(sequence).tokens_and_end()[0] == expected([2, index])
    until_running(scheduler, 0)
    following = from_source(Source(np.array([2])))
    scheduler.submit(following)
    assert inbox(following).tokens_and_end()[0] == expected([2])
    scheduler.stop()


def test_internal_error_in_the_encoder_fails_the_affected_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(capacity=4)
    scheduler = make_scheduler(engine)

    def broken(sources: object) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "encode", broken)
        sequence = from_source(Source(np.array([2])))
        scheduler.submit(sequence)
        scheduler.start()
        _, end = inbox(sequence).tokens_and_end()
        assert isinstance(end, Failed)
        assert str(end.error) == "internal error"
    following = from_source(Source(np.array([2])))
    scheduler.submit(following)
    assert inbox(following).tokens_and_end()[0] == expected([2])
    scheduler.stop()


def test_encoding_delays_running_requests_only_briefly() -> None:
    """Long sources are encoded in several iterations while requests are running."""
    engine = FakeEngine(capacity=8)
    engine.gate.clear()
    scheduler = make_scheduler(engine)
    running = generation(PROMPT, 200)
    scheduler.submit(running)
    scheduler.start()
    until_running(scheduler, 1)
    sequences = [from_source(Source(np.full(300, 3))) for _ in range(6)]
    for sequence in sequences:
        scheduler.submit(sequence)
    engine.gate.set()
    for sequence in sequences:
        assert inbox(sequence).tokens_and_end()[0] == expected([3] * 300)
    assert inbox(running).tokens_and_end()[0] == continuation(PROMPT, 200)
    scheduler.stop()
    assert engine.encoded == [2, 2, 2]
