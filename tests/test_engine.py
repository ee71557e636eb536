"""The engine: rows that do not know of each other, to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from elman_bundle import Bundle, CharacterVocabulary, load_bundle, write_bundle, write_tokens
from elman_protos import v1
from elman_server.engine import (
    FREE,
    NOTHING,
    Chunk,
    EngineError,
    OnnxEngine,
    Opener,
    ProviderChoice,
    Results,
    Wanted,
    is_filtered,
)
from elman_server.scheduling import Pace
from elman_server.scheduling.turn import Plan, Turn
from tests.conftest import CHARACTERS

SIZES = (1, 2, 3, 5, 8, 17, 64)
COUNTS = (1, 2, 4, 8)
State = dict[str, Any]


def make_engine(bundle: Bundle, capacity: int = 64, threads: int = 1) -> OnnxEngine:
    """An engine that takes any of COUNTS steps, however long they take here."""
    engine = OnnxEngine(bundle, capacity=capacity, opener=Opener(ProviderChoice.CPU, threads), chunk_seconds=0.005)
    engine._step_counts[:] = COUNTS
    return engine


def make_chunk(tokens: NDArray[Any], **changes: Any) -> Chunk:
    """A chunk [B, K] of a model over CHARACTERS, sampled at temperature 1."""
    rows = len(tokens)
    values = {
        "uniforms": np.full(tokens.shape, 0.5, np.float32),
        "temperatures": np.ones(rows, np.float32),
        "top_k": np.full(rows, CHARACTERS.size),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
    }
    values |= changes
    filtered = is_filtered(values["top_k"], values["top_p"], values["min_p"], CHARACTERS.size)
    return Chunk({"token": tokens}, **values, filtered=filtered)


def run_lanes(engine: OnnxEngine, chunk: Chunk) -> Results:
    """Run the rows that come first as a turn does: in the engine's lanes."""
    rows = len(chunk.uniforms)
    plan = Plan(chunk, len(chunk), len(chunk), True, (len(chunk),))
    turn = Turn(engine, Pace(1.0, 0.0, 1.0), plan, lambda: False, np.full((rows, 1), FREE))
    with ThreadPoolExecutor() as executor:
        ran = turn.run(executor)
    assert ran is not None
    assert ran.counts.tolist() == [len(chunk)] * rows
    return ran.results


def read(engine: OnnxEngine, tokens: NDArray[Any], rows: int, count: int = 1) -> tuple[list[Any], list[State]]:
    """Forced steps [steps, rows] of tokens from the initial state, `count` at a time; what was shown after every step,
    [rows, ...] each, and the last state of every row."""
    for row in range(rows):
        engine.insert(row)
    shown: list[Any] = []
    for start in range(0, len(tokens), count):
        results = run_lanes(engine, make_chunk(tokens[start : start + count, :rows].T))
        values = next(iter(results.outputs.values()), results.tokens)
        shown.extend(values[:, step].copy() for step in range(values.shape[1]))
        engine.commit(range(rows))
    return shown, [engine.extract(row) for row in range(rows)]


def same(found: State, expected: State) -> bool:
    return all(found[name].tobytes() == value.tobytes() for name, value in expected.items())


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "tags", "lstm-int8"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_batched_equals_alone_to_the_bit(bundles: dict[str, Bundle], name: str, threads: int, lanes: int) -> None:
    """However many rows there are, and however they are divided among threads."""
    tokens = np.random.default_rng(0).integers(0, CHARACTERS.size, (16, max(SIZES)))
    engine = make_engine(bundles[name], threads=threads)
    engine._lane_counts.update(dict.fromkeys(range(7), lanes))
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
def test_many_steps_in_a_run_equal_as_many_runs_to_the_bit(
    bundles: dict[str, Bundle], name: str, filtered: bool
) -> None:
    """Free and forced steps mixed: in one run the choice is fed back inside the graph, else by hand."""
    random = np.random.default_rng(3)
    engine = make_engine(bundles[name])
    given = random.integers(0, CHARACTERS.size, (64, 8))
    given[random.random(given.shape) < 0.6] = FREE
    given[:, 0] = 5
    uniforms = random.random(given.shape).astype(np.float32)
    options = {"temperatures": random.choice([0.5, 1.0, 2.0], 64).astype(np.float32)}
    if filtered:  # Some rows only; the others shall not notice.
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


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "run"]), st.integers(0, 10**6)), max_size=40))
def test_joining_and_leaving_never_mix_rows(bundles: dict[str, Bundle], events: list[tuple[str, int]]) -> None:
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


def test_a_slot_that_was_used_starts_anew(bundles: dict[str, Bundle]) -> None:
    engine = make_engine(bundles["gru"], capacity=1)
    tokens = np.array([[3], [4]])
    assert same(read(engine, tokens, 1)[1][0], read(engine, tokens, 1)[1][0])


def test_state_taken_out_and_put_in_elsewhere_goes_on_as_if_nothing_had_been(bundles: dict[str, Bundle]) -> None:
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
def test_a_row_that_ended_in_the_middle_of_a_chunk_is_replayed_to_the_bit(
    bundles: dict[str, Bundle], steps: int
) -> None:
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
    for row in (0, 2):  # The others are where the chunk led them.
        assert same(engine.extract(row), states[row])


@pytest.mark.parametrize("name", ["gru", "lstm-int8"])
def test_rows_that_read_ahead_are_where_they_would_be_and_the_others_where_they_were(
    bundles: dict[str, Bundle], name: str
) -> None:
    tokens = np.random.default_rng(4).integers(0, CHARACTERS.size, (8, 5))
    engine = make_engine(bundles[name])
    _, together = read(engine, tokens, 5, count=4)
    read(engine, tokens[:4], 5, count=4)
    before = [engine.extract(row) for row in range(5)]
    engine.read_ahead(range(1, 3), {"token": tokens[4:, 1:3].T})
    for row in range(5):
        assert same(engine.extract(row), together[row] if row in (1, 2) else before[row])


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.sampled_from(COUNTS)), max_size=12))
def test_rows_that_have_taken_different_numbers_of_steps_never_mix(
    bundles: dict[str, Bundle], runs: list[tuple[int, int, int]]
) -> None:
    """Some rows run and commit, as often as it comes, and then others that share some of them."""
    engine, lone = make_engine(bundles["lstm"], capacity=5), make_engine(bundles["lstm"], capacity=1)
    histories: list[list[int]] = [[] for _ in range(5)]
    for row in range(5):
        engine.insert(row)
    for number, (first, length, count) in enumerate([*runs, (0, 5, 1)]):
        rows = range(first, min(first + length, 5))
        tokens = (np.arange(len(rows) * count).reshape(-1, count) * 7 + number) % CHARACTERS.size
        engine.run(rows, make_chunk(tokens), lane=0 if number % 2 == 0 else None)
        engine.commit(rows)
        for row, row_tokens in zip(rows, tokens.tolist(), strict=True):
            histories[row] += row_tokens
    for row, history in enumerate(histories):
        _, (expected,) = read(lone, np.array(history, dtype=np.int64).reshape(-1, 1), 1)
        assert same(engine.extract(row), expected)


def test_a_failed_run_has_changed_nothing(bundles: dict[str, Bundle]) -> None:
    engine = make_engine(bundles["gru"], capacity=3)
    tokens = np.array([[1, 2, 3]])
    _, before = read(engine, tokens, 3)
    with pytest.raises(EngineError):
        engine.run(range(3), make_chunk(np.array([[1], [CHARACTERS.size + 5], [2]])))
    for row in range(3):
        assert same(engine.extract(row), before[row])
    # The good rows go on one by one, as the scheduler would run them.
    for row in (0, 2):
        engine.run(range(row, row + 1), make_chunk(np.array([[5]])))
    engine.commit(range(3))
    lone = make_engine(bundles["gru"], capacity=1)
    for row, token in ((0, 1), (2, 3)):
        _, (expected,) = read(lone, np.array([[token], [5]]), 1)
        assert same(engine.extract(row), expected)


def test_warm_up_runs_the_largest_batch_and_finds_how_many_steps_fit(bundles: dict[str, Bundle]) -> None:
    opener = Opener(ProviderChoice.CPU, 1)
    engine = OnnxEngine(bundles["gru"], capacity=6, opener=opener, chunk_seconds=0.005)
    engine.warm_up()
    counts = engine.step_counts_for(False, NOTHING)
    assert counts[0] == 1
    assert list(counts) == sorted(set(counts))
    assert len(counts) > 1
    hasty = OnnxEngine(bundles["gru"], capacity=6, opener=opener, chunk_seconds=1e-9)
    hasty.warm_up()
    for filtered in (False, True):
        assert list(hasty.step_counts_for(filtered, NOTHING)) == [1]
        assert list(hasty.step_counts_for(filtered, Wanted(states=True))) == [1]


def test_one_bad_moment_does_not_divide_rows(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(bundles["gru"], capacity=16, threads=2)
    monkeypatch.setattr("elman_server.engine.onnx._LEAST_SECONDS", 0.0)
    # Of 2 rows; of 4, twice; of 8, where it begins, twice; of 16.
    found = iter([False, True, False, True, True, True])
    monkeypatch.setattr(engine, "_is_faster_beside", lambda size, count: next(found))
    engine._divide()
    assert engine.divided_at == "5 to 16 rows"


@pytest.mark.parametrize("name", ["lstm", "lstm-int8", "tags", "classes"])
def test_onnxruntime_has_nothing_to_complain_of(
    bundles: dict[str, Bundle], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    opener = Opener(ProviderChoice.CPU, 2)
    OnnxEngine(bundles[name], capacity=4, opener=opener, chunk_seconds=0.005).warm_up()
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def column_bundle(tmp_path: Path) -> Bundle:
    """A bundle that is not ours: a running sum whose state has its rows on axis 1, made without torch."""
    nodes = [
        helper.make_node("Cast", ["token"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["before", "number"], ["after"]),  # [2, B] + [B]
        helper.make_node("Transpose", ["after"], ["scores"], perm=[1, 0]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["B"]),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [2, "B"]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 2]),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [2, "B"]),
        ],
    )
    folder = tmp_path / "column"
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "g.onnx")
    write_tokens(folder / "t.json", ["a", "b", "c"])
    write_tokens(folder / "l.json", ["x", "y"])
    spec = v1.ModelSpec(manifest_version=1, name="column", step=v1.StepSpec(file="g.onnx"))
    spec.vocabularies.add(name="t", kind=v1.VOCABULARY_KIND_CHARACTERS, file="t.json", size=3)
    spec.vocabularies.add(name="l", kind=v1.VOCABULARY_KIND_LABELS, file="l.json", size=2)
    spec.step.inputs.add(name="token", data_type=v1.DATA_TYPE_INT64).token.vocabulary = "t"
    spec.step.states.add(
        input_name="before", output_name="after", data_type=v1.DATA_TYPE_FLOAT32, shape=[2], row_axis=1, fill=0.5
    )
    output = spec.step.outputs.add(name="scores", data_type=v1.DATA_TYPE_FLOAT32, shape=[2])
    output.label_logits.vocabulary = "l"
    output.label_logits.scope = v1.LABEL_SCOPE_STEP
    write_bundle(folder, spec)
    return load_bundle(folder)


def test_a_third_partys_row_axis_is_honoured(column_bundle: Bundle) -> None:
    engine = make_engine(column_bundle, capacity=4)
    assert isinstance(column_bundle.vocabularies["t"], CharacterVocabulary)
    for row in range(3):
        engine.insert(row)
    for count in (1, 2, 1):
        before = engine.extract(1)["before"][0]
        chunk = make_chunk(np.repeat([[0], [1], [2]], count, axis=1))
        found = engine.run(range(3), chunk).outputs["scores"]
        assert found[1].tolist() == [[before + step + 1] * 2 for step in range(count)]
        engine.commit(range(3))
    engine.move(2, 0)
    assert engine.extract(0)["before"].tolist() == [8.5, 8.5]
    assert engine.run(range(2), make_chunk(np.array([[1], [1]]))).outputs["scores"].tolist() == [
        [[9.5] * 2],
        [[5.5] * 2],
    ]


async def test_a_third_partys_bundle_is_served(column_bundle: Bundle) -> None:
    from tests.serving import serving

    async with serving(column_bundle) as running:
        prediction = await running.client.classify("abcc")
        assert [step.name for step in prediction.steps] == ["x"] * 4
