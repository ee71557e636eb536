"""The engine: rows are independent of each other to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elman_bundle import Bundle, CharacterVocabulary
from elman_server.engine import (
    DEFAULT_OUTPUTS,
    FREE,
    EnginePolicy,
    OnnxEngine,
    Opener,
    OutputSelection,
    ProviderChoice,
    autotune,
)
from elman_server.engine.autotune import Autotuner
from elman_server.errors import EngineError
from tests.support.amount import examples
from tests.support.bundles import CHARACTERS
from tests.support.engines import COUNTS, State, divide_rows, make_chunk, make_engine, read, same

SIZES = (1, 2, 3, 5, 8, 17, 64)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "tags", "lstm-int8"])
@pytest.mark.parametrize("partitions", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_batched_equals_alone_bit_exactly(
    bundles: Mapping[str, Bundle], name: str, threads: int, partitions: int
) -> None:
    """This holds for any number of rows and any partitioning among threads."""
    tokens = np.random.default_rng(0).integers(0, CHARACTERS.size, (16, max(SIZES)))
    engine = make_engine(bundles[name], threads=threads)
    divide_rows(engine, partitions)
    together, states = read(engine, tokens, max(SIZES))
    for size in SIZES:
        for first in range(0, max(SIZES) - size + 1, max(1, size * 3)):
            alone, alone_states = read(engine, tokens[:, first : first + size], size, count=COUNTS[first % len(COUNTS)])
            for step, values in enumerate(alone):
                assert values.tobytes() == together[step][first : first + size].tobytes()
            for row, state in enumerate(alone_states):
                assert same(state, states[first + row])


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "lstm-int8"])
@pytest.mark.parametrize("filtered", [False, True])
def test_multi_step_run_equals_single_step_runs_bit_exactly(
    bundles: Mapping[str, Bundle], name: str, filtered: bool
) -> None:
    """Free and forced steps are mixed; in one run the graph feeds back the sampled token, otherwise the test does."""
    random = np.random.default_rng(3)
    engine = make_engine(bundles[name])
    given = random.integers(0, CHARACTERS.size, (64, 8))
    given[random.random(given.shape) < 0.6] = FREE
    given[:, 0] = 5
    uniforms = random.random(given.shape).astype(np.float32)
    options = {"temperatures": random.choice([0.5, 1.0, 2.0], 64).astype(np.float32)}
    if filtered:  # only some rows; the others must not change
        options["top_p"] = random.choice([0.2, 0.8, 1.0], 64).astype(np.float32)
        options["top_k"] = random.choice([1, 7, CHARACTERS.size], 64)
        options["min_p"] = random.choice([0, 0, 0.5], 64).astype(np.float32)
    runs: dict[int, tuple[Any, list[State]]] = {}
    for count in COUNTS:
        for row in range(64):
            engine.insert(row)
        chosen = np.zeros((64, 0), np.int64)
        for start in range(0, 8, count):
            inputs = given[:, start : start + count].copy()
            if start:
                inputs[:, 0] = np.where(inputs[:, 0] == FREE, chosen[:, -1], inputs[:, 0])
            chunk = make_chunk(inputs, **{**options, "uniforms": uniforms[:, start : start + count]})
            results = engine.run(range(64), chunk)
            assert not results.failed.any()
            chosen = np.hstack([chosen, results.tokens])
            engine.commit(range(64))
        runs[count] = (chosen, [engine.extract(row) for row in range(64)])
    for count in COUNTS[1:]:
        assert runs[count][0].tolist() == runs[1][0].tolist()
        assert all(same(*states) for states in zip(runs[count][1], runs[1][1], strict=True))
    if filtered:
        plain = make_chunk(given, temperatures=options["temperatures"], uniforms=uniforms)
        for row in range(64):
            engine.insert(row)
        tokens = engine.run(range(64), plain).tokens
        unfiltered = (options["top_p"] == 1) & (options["top_k"] == CHARACTERS.size) & (options["min_p"] == 0)
        assert unfiltered.any()
        assert tokens[unfiltered].tolist() == runs[8][0][unfiltered].tolist()
        assert tokens.tolist() != runs[8][0].tolist()


@settings(max_examples=examples(10, everything=30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "run"]), st.integers(0, 10**6)), max_size=40))
def test_joining_and_leaving_never_mixes_rows(bundles: Mapping[str, Bundle], events: list[tuple[str, int]]) -> None:
    bundle = bundles["lstm"]
    engine, lone = make_engine(bundle, capacity=6), make_engine(bundle, capacity=1)
    histories: list[list[int]] = []
    for event, number in events:
        if event == "join" and len(histories) < 6:
            engine.insert(len(histories))
            histories.append([])
        elif event == "leave" and histories:
            row = number % len(histories)
            last = len(histories) - 1
            if row != last:
                engine.move(last, row)
                histories[row] = histories[last]
            histories.pop()
        elif event == "run" and histories:
            count = COUNTS[number % len(COUNTS)]
            tokens = (np.arange(len(histories) * count).reshape(-1, count) * 7 + number) % CHARACTERS.size
            engine.run(range(len(histories)), make_chunk(tokens))
            engine.commit(range(len(histories)))
            for history, row_tokens in zip(histories, tokens.tolist(), strict=True):
                history.extend(row_tokens)
    for row, history in enumerate(histories):
        _, (expected,) = read(lone, np.array(history, dtype=np.int64).reshape(-1, 1), 1)
        assert same(engine.extract(row), expected)


def test_reused_slot_starts_from_the_initial_state(bundles: Mapping[str, Bundle]) -> None:
    engine = make_engine(bundles["gru"], capacity=1)
    tokens = np.array([[3], [4]])
    assert same(read(engine, tokens, 1)[1][0], read(engine, tokens, 1)[1][0])


def test_state_moved_to_another_slot_continues_unchanged(bundles: Mapping[str, Bundle]) -> None:
    tokens = np.random.default_rng(1).integers(0, CHARACTERS.size, (10, 1))
    _, (unbroken,) = read(make_engine(bundles["lstm"], capacity=1), tokens, 1)
    _, (state,) = read(make_engine(bundles["lstm"], capacity=1), tokens[:5], 1)
    other = make_engine(bundles["lstm"], capacity=5)
    for row in range(5):
        other.insert(row)
    other.insert(3, state)
    for step in range(5, 10):
        inputs = np.full((5, 1), 7)
        inputs[3] = tokens[step, 0]
        other.run(range(5), make_chunk(inputs))
        other.commit(range(5))
    assert same(other.extract(3), unbroken)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_replay_of_a_partial_chunk_is_bit_exact(bundles: Mapping[str, Bundle], steps: int) -> None:
    tokens = np.random.default_rng(2).integers(0, CHARACTERS.size, (16, 3))
    engine = make_engine(bundles["gru"], capacity=3)
    _, states = read(engine, tokens, 3, count=8)
    for row in range(3):
        engine.insert(row)
    engine.run(range(3), make_chunk(tokens[:8].T))
    engine.commit(range(3))
    engine.run(range(3), make_chunk(tokens[8:].T))
    engine.replay(1, {"token": tokens[8 : 8 + steps, 1]})
    engine.commit(range(3))
    _, (expected,) = read(make_engine(bundles["gru"], capacity=1), tokens[: 8 + steps, 1:2], 1)
    assert same(engine.extract(1), expected)
    assert not same(engine.extract(1), states[1])
    for row in (0, 2):  # the other rows have the state after the chunk
        assert same(engine.extract(row), states[row])


@pytest.mark.parametrize("name", ["gru", "lstm-int8"])
def test_prefill_advances_its_rows_and_leaves_the_others(bundles: Mapping[str, Bundle], name: str) -> None:
    tokens = np.random.default_rng(4).integers(0, CHARACTERS.size, (8, 5))
    engine = make_engine(bundles[name])
    _, together = read(engine, tokens, 5, count=4)
    read(engine, tokens[:4], 5, count=4)
    before = [engine.extract(row) for row in range(5)]
    engine.prefill(range(1, 3), {"token": tokens[4:, 1:3].T})
    for row in range(5):
        assert same(engine.extract(row), together[row] if row in (1, 2) else before[row])


@settings(max_examples=examples(8, everything=20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.sampled_from(COUNTS)), max_size=12))
def test_rows_with_different_numbers_of_steps_never_mix(
    bundles: Mapping[str, Bundle], runs: list[tuple[int, int, int]]
) -> None:
    """Random ranges of rows run and commit, and the ranges overlap."""
    engine, lone = make_engine(bundles["lstm"], capacity=5), make_engine(bundles["lstm"], capacity=1)
    histories: list[list[int]] = [[] for _ in range(5)]
    for row in range(5):
        engine.insert(row)
    for number, (first, length, count) in enumerate([*runs, (0, 5, 1)]):
        rows = range(first, min(first + length, 5))
        tokens = (np.arange(len(rows) * count).reshape(-1, count) * 7 + number) % CHARACTERS.size
        engine.run(rows, make_chunk(tokens), partition=0 if number % 2 == 0 else None)
        engine.commit(rows)
        for row, row_tokens in zip(rows, tokens.tolist(), strict=True):
            histories[row] += row_tokens
    for row, history in enumerate(histories):
        _, (expected,) = read(lone, np.array(history, dtype=np.int64).reshape(-1, 1), 1)
        assert same(engine.extract(row), expected)


def test_failed_run_changes_no_state(bundles: Mapping[str, Bundle]) -> None:
    engine = make_engine(bundles["gru"], capacity=3)
    tokens = np.array([[1, 2, 3]])
    _, before = read(engine, tokens, 3)
    with pytest.raises(EngineError):
        engine.run(range(3), make_chunk(np.array([[1], [CHARACTERS.size + 5], [2]])))
    for row in range(3):
        assert same(engine.extract(row), before[row])
    # The other rows continue one by one, as the scheduler runs them.
    for row in (0, 2):
        engine.run(range(row, row + 1), make_chunk(np.array([[5]])))
    engine.commit(range(3))
    lone = make_engine(bundles["gru"], capacity=1)
    for row, token in ((0, 1), (2, 3)):
        _, (expected,) = read(lone, np.array([[token], [5]]), 1)
        assert same(engine.extract(row), expected)


def test_warm_up_runs_the_largest_batch_and_determines_the_step_counts(bundles: Mapping[str, Bundle]) -> None:
    opener = Opener(ProviderChoice.CPU, 1)
    engine = OnnxEngine(bundles["gru"], capacity=6, opener=opener, run_seconds=0.005)
    autotune(engine)
    counts = engine.step_counts_for(False, DEFAULT_OUTPUTS)
    assert counts[0] == 1
    assert list(counts) == sorted(set(counts))
    assert len(counts) > 1
    hasty = OnnxEngine(bundles["gru"], capacity=6, opener=opener, run_seconds=1e-9)
    autotune(hasty)
    for filtered in (False, True):
        assert list(hasty.step_counts_for(filtered, DEFAULT_OUTPUTS)) == [1]
        assert list(hasty.step_counts_for(filtered, OutputSelection(states=True))) == [1]


def test_one_slow_measurement_does_not_divide_rows(
    bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = EnginePolicy(partition_least_run_seconds=0.0)
    engine = make_engine(bundles["gru"], capacity=16, threads=2, policy=policy)
    tuner = Autotuner(engine)
    # 2 rows; 4 rows, twice; 8 rows, where partitioning starts, twice; 16 rows
    outcomes = iter([False, True, False, True, True, True])
    monkeypatch.setattr(tuner, "_is_faster_divided", lambda size, count: next(outcomes))
    tuner._divide_rows()
    assert str(engine.partitions) == "5 to 16 rows"


@pytest.mark.parametrize("name", ["lstm", "lstm-int8", "tags", "classes"])
def test_onnxruntime_logs_no_warnings(
    bundles: Mapping[str, Bundle], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    opener = Opener(ProviderChoice.CPU, 2)
    autotune(OnnxEngine(bundles[name], capacity=4, opener=opener, run_seconds=0.005))
    assert capfd.readouterr() == ("", "")


def test_row_axis_of_a_third_party_bundle_is_respected(column_bundle: Bundle) -> None:
    engine = make_engine(column_bundle, capacity=4)
    assert isinstance(column_bundle.vocabularies["t"], CharacterVocabulary)
    for row in range(3):
        engine.insert(row)
    for count in (1, 2, 1):
        before = engine.extract(1)["before"][0]
        chunk = make_chunk(np.repeat([[0], [1], [2]], count, axis=1))
        result = engine.run(range(3), chunk).outputs["scores"]
        assert result[1].tolist() == [[before + step + 1] * 2 for step in range(count)]
        engine.commit(range(3))
    engine.move(2, 0)
    assert engine.extract(0)["before"].tolist() == [8.5, 8.5]
    assert engine.run(range(2), make_chunk(np.array([[1], [1]]))).outputs["scores"].tolist() == [
        [[9.5] * 2],
        [[5.5] * 2],
    ]


async def test_third_party_bundle_is_served(column_bundle: Bundle) -> None:
    from tests.support.serving import serving

    async with serving(column_bundle) as running:
        prediction = await running.client.classify("abcc")
        assert [step.name for step in prediction.steps] == ["x"] * 4
