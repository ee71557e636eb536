"""The engine: rows that do not know of each other, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bundle import Bundle, CharacterVocabulary, load_bundle, write_bundle, write_tokens
from elman import v1
from server.engine import EngineError, OnnxEngine, ProviderChoice
from tests.conftest import CHARACTERS

SIZES = (1, 2, 3, 5, 8, 17, 64)


def make_engine(bundle: Bundle, capacity: int = 64, threads: int = 1) -> OnnxEngine:
    return OnnxEngine(bundle, capacity=capacity, choice=ProviderChoice.CPU, threads=threads)


def run(engine: OnnxEngine, tokens: np.ndarray, rows: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Steps [steps, rows] of tokens; the logits of every step and the last state of every row."""
    for row in range(rows):
        engine.insert(row)
    logits = []
    for step in tokens:
        logits.append(engine.step(range(rows), {"token": step[:rows]})["logits"].copy())
        engine.commit()
    return logits, [engine.extract(row) for row in range(rows)]


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
@pytest.mark.parametrize("threads", [1, 2])
def test_batched_equals_alone_to_the_bit(bundles: dict[str, Bundle], cell: str, threads: int) -> None:
    tokens = np.random.default_rng(0).integers(0, CHARACTERS.size, (20, max(SIZES)))
    engine = make_engine(bundles[cell], threads=threads)
    together, states = run(engine, tokens, max(SIZES))
    for size in SIZES:
        for first in range(0, max(SIZES) - size + 1, max(1, size * 3)):
            alone, alone_states = run(engine, tokens[:, first : first + size], size)
            for step, logits in enumerate(alone):
                assert logits.tobytes() == together[step][first : first + size].tobytes()
            for row, state in enumerate(alone_states):
                assert all(value.tobytes() == states[first + row][name].tobytes() for name, value in state.items())


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "step"]), st.integers(0, 10**6)), max_size=40))
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
        elif event == "step" and histories:
            tokens = (np.arange(len(histories)) * 7 + number) % CHARACTERS.size
            engine.step(range(len(histories)), {"token": tokens})
            engine.commit()
            for history, token in zip(histories, tokens.tolist(), strict=True):
                history.append(token)
    for row, history in enumerate(histories):
        _, (expected,) = run(lone, np.array(history, dtype=np.int64).reshape(-1, 1), 1)
        found = engine.extract(row)
        assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())


def test_a_slot_that_was_used_starts_anew(bundles: dict[str, Bundle]) -> None:
    engine = make_engine(bundles["gru"], capacity=1)
    tokens = np.array([[3], [4]])
    first, _ = run(engine, tokens, 1)
    second, _ = run(engine, tokens, 1)
    assert first[0].tobytes() == second[0].tobytes()


def test_state_taken_out_and_put_in_elsewhere_goes_on_as_if_nothing_had_been(bundles: dict[str, Bundle]) -> None:
    tokens = np.random.default_rng(1).integers(0, CHARACTERS.size, (10, 1))
    unbroken, _ = run(make_engine(bundles["lstm"], capacity=1), tokens, 1)
    _, (state,) = run(make_engine(bundles["lstm"], capacity=1), tokens[:5], 1)
    other = make_engine(bundles["lstm"], capacity=5)
    for row in range(5):
        other.insert(row)
    other.insert(3, state)
    for step in range(5, 10):
        inputs = np.full(5, 7)
        inputs[3] = tokens[step, 0]
        logits = other.step(range(5), {"token": inputs})["logits"][3].copy()
        other.commit()
        assert logits.tobytes() == unbroken[step][0].tobytes()


def test_a_failed_step_has_changed_nothing(bundles: dict[str, Bundle]) -> None:
    engine = make_engine(bundles["gru"], capacity=3)
    tokens = np.array([[1, 2, 3]])
    _, before = run(engine, tokens, 3)
    with pytest.raises(EngineError):
        engine.step(range(3), {"token": np.array([1, CHARACTERS.size + 5, 2])})
    for row in range(3):
        assert all(np.array_equal(engine.extract(row)[name], value) for name, value in before[row].items())
    # The good rows go on one by one, as the scheduler would run them.
    for row in (0, 2):
        engine.step(range(row, row + 1), {"token": np.array([5])})
    engine.commit()
    lone = make_engine(bundles["gru"], capacity=1)
    for row, token in ((0, 1), (2, 3)):
        _, (expected,) = run(lone, np.array([[token], [5]]), 1)
        assert all(engine.extract(row)[name].tobytes() == value.tobytes() for name, value in expected.items())


def test_warm_up_runs_the_largest_batch(bundles: dict[str, Bundle]) -> None:
    engine = make_engine(bundles["gru"], capacity=6)
    engine.warm_up()
    run(engine, np.ones((2, 6), dtype=np.int64), 6)


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
    for step in range(4):
        found = engine.step(range(3), {"token": np.array([0, 1, 2])})["scores"]
        assert found.tolist() == [[0.5 + row * (step + 1)] * 2 for row in range(3)]
        engine.commit()
    engine.move(2, 0)
    assert engine.extract(0)["before"].tolist() == [8.5, 8.5]
    assert engine.step(range(2), {"token": np.array([1, 1])})["scores"].tolist() == [[9.5] * 2, [5.5] * 2]


async def test_a_third_partys_bundle_is_served(column_bundle: Bundle) -> None:
    from tests.serving import serving

    async with serving(column_bundle) as running:
        prediction = await running.client.classify("abcc")
        assert [step.name for step in prediction.steps] == ["x"] * 4
