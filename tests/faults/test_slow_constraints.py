"""A grammar that is slow to follow delays its own sequence only, and changes nothing of what it generates."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from elman_server.decoding.constraints import Constraint, ConstraintKind, Grammar, Grammars
from elman_server.decoding.constraints.vocabulary import MatcherVocabulary
from elman_server.scheduling import Failed, Finished, FinishReason, Generation, SamplingParams, Scheduler
from elman_server.scheduling.fair_executor import FairExecutor
from tests.support.fake_engine import LETTERS, FakeEngine, continuation
from tests.support.grammars import LARK, REGEX, Vocabulary
from tests.support.scheduling import Inbox, generation, inbox, make_policy, make_scheduler, until_running

AMBIGUOUS = 'start: start start | "a"'
READ = 20  # tokens to follow
GRAMMARS = Grammars([None, *(letter.encode() for letter in LETTERS[1:])], None)


def grammar(text: str, kind: ConstraintKind = REGEX) -> Grammar:
    return GRAMMARS.compile(Constraint(kind, text))


def constrained(compiled: Grammar, max_tokens: int = 30, **options: Any) -> Generation:
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=max_tokens, grammar=compiled)
    return Generation(np.array(options.pop("prompt", [1, 2])), Inbox(), params=params, **options)


def running(**changes: Any) -> Scheduler:
    scheduler = make_scheduler(FakeEngine(capacity=8), policy=make_policy(**changes))
    scheduler.start()
    return scheduler


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Grammars that are followed apart from others stand still until this is set."""
    released, consume = threading.Event(), MatcherVocabulary.consume

    def wait_and_consume(vocabulary: MatcherVocabulary, *arguments: Any) -> bool:
        released.wait()
        return consume(vocabulary, *arguments)

    monkeypatch.setattr(MatcherVocabulary, "consume", wait_and_consume)
    yield released
    released.set()


def resumed(**options: Any) -> Generation:
    """A call that goes on after an interruption, with all of its text to be followed again."""
    history = np.ones(READ + 1, np.int64)
    return constrained(grammar(AMBIGUOUS, LARK), prompt=[1], history=history, generated_count=READ, **options)


def test_others_go_on_while_a_grammar_is_slow(held: threading.Event) -> None:
    victim = resumed(max_tokens=3)
    others = [generation([number], 40) for number in range(1, 5)]
    scheduler = running()
    try:
        for sequence in (victim, *others):
            scheduler.submit(sequence)
        for number, other in enumerate(others, 1):
            assert inbox(other).tokens_and_end()[0] == continuation([number], 40)
        assert inbox(victim).events.empty()
        held.set()
        tokens, end = inbox(victim).tokens_and_end()
        assert tokens == [1, 1, 1]
        assert isinstance(end, Finished)
    finally:
        held.set()
        scheduler.stop()


ALWAYS_SLOW = {"slow_constraint_seconds": -1.0}
EXPRESSIONS = ["[a-i]*", "a?b?[c-h]{3}", "[a-h]{5}", "(ab|cd|[d-g])*", "a{0,3}[b-i]+"]


@pytest.mark.parametrize("text", EXPRESSIONS)
@pytest.mark.parametrize("keep_state", [False, True])
def test_a_slow_grammar_generates_what_a_fast_one_does(text: str, keep_state: bool) -> None:
    ends = []
    for changes in ({"slow_constraint_seconds": 1e9}, ALWAYS_SLOW):
        scheduler = running(**changes)
        try:
            beside = generation([3], 500)
            sequences = [constrained(grammar(text), keep_state=keep_state, prompt=[number]) for number in (1, 2, 3)]
            for sequence in (beside, *sequences):
                scheduler.submit(sequence)
            ends.append([inbox(sequence).tokens_and_end() for sequence in sequences])
            assert inbox(beside).tokens_and_end()[0] == continuation([3], 500)
            until_running(scheduler, 0)
        finally:
            scheduler.stop()
    for (tokens, end), (slow_tokens, slow_end) in zip(*ends, strict=True):
        assert slow_tokens == tokens
        assert slow_end == end


@pytest.mark.parametrize("way", ["abort", "pause", "stop", "time"])
def test_a_sequence_that_waits_for_its_grammar_can_be_ended(way: str, held: threading.Event) -> None:
    victim = resumed(time_limit=time.perf_counter() + 0.05 if way == "time" else None)
    scheduler = running()
    try:
        scheduler.submit(victim)
        until_running(scheduler, 0)
        if way == "abort":
            scheduler.abort(victim)
        elif way == "pause":
            scheduler.set_paused(victim, paused=True)
            held.set()
            scheduler.set_paused(victim, paused=False)
            assert inbox(victim).tokens_and_end()[0] == [1] * 30
        elif way == "time":
            _, end = inbox(victim).tokens_and_end()
            assert isinstance(end, Finished)
            assert end.reason is FinishReason.TIME_LIMIT
        later = generation([2], 20)
        scheduler.submit(later)
        assert inbox(later).tokens_and_end()[0] == continuation([2], 20)
        assert inbox(victim).events.empty()
        if way != "stop":
            held.set()
    finally:
        scheduler.stop()
        held.set()
    if way == "stop":
        assert isinstance(inbox(victim).tokens_and_end()[1], Failed)
    assert inbox(victim).events.empty()


def test_other_threads_run_while_a_token_is_added() -> None:
    own = Vocabulary([b"a"], None)
    matcher = own.start(LARK, AMBIGUOUS)
    done, ticks, most = threading.Event(), list[float](), 0

    def tick() -> None:
        while not done.wait(0.0005):
            ticks.append(time.monotonic())

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        for _ in range(450):  # the last of which take some milliseconds
            ticks.clear()
            started = time.monotonic()
            matcher.accept(0, apart=True)
            ended = time.monotonic()
            most = max(most, sum(started < moment < ended for moment in ticks))
            if most > 3:
                break
    finally:
        done.set()
        ticking.join()
    assert matcher.error is None
    assert most > 3
    alone, together = own.start(REGEX, "aa"), own.start(REGEX, "aa")
    for _ in range(3):
        alone.accept(0)
        together.accept(0, apart=True)
    assert together.error == alone.error is not None


def test_callers_take_turns() -> None:
    executor, order, gate = FairExecutor("test"), list[str](), threading.Event()
    first = executor.submit("a", gate.wait)
    futures = [
        executor.submit(name[0], lambda name=name: order.append(name)) for name in ("a1", "a2", "a3", "b1", "c1")
    ]
    broken = executor.submit("d", lambda: 1 // 0)
    gate.set()
    for future in (first, *futures):
        future.result(10)
    assert isinstance(broken.exception(10), ZeroDivisionError)
    assert order in (["b1", "c1", "a1", "a2", "a3"], ["a1", "b1", "c1", "a2", "a3"])  # `first` may run at once.
