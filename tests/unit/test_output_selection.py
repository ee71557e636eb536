"""Outputs of a run other than tokens: correct, independent of the batch to the bit, and without effect on tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from elman_bundle import Bundle
from elman_server.decoding.in_graph import Nodes, add_log_probabilities, add_score
from elman_server.engine import (
    DEFAULT_OUTPUTS,
    FREE,
    Chunk,
    EnginePolicy,
    OnnxEngine,
    OutputSelection,
    Results,
    autotune,
)
from tests.support.amount import examples
from tests.support.bundles import CHARACTERS
from tests.support.engines import COUNTS, divide_rows, make_chunk, make_engine, run_partitioned, same
from tests.support.reference import open_graph
from tests.support.scores import log_softmax

ROWS, STEPS = 64, 8
EVERYTHING = OutputSelection(logits=True, log_probabilities=True, states=True, outputs=True)
SELECTIONS = [OutputSelection(*flags) for flags in product([False, True], repeat=4)]
# None, each alone, all: every selection opens graphs of its own.
FEW_SELECTIONS = [one for one in SELECTIONS if sum(astuple(one)) in (0, 1, 4)]


@pytest.fixture(scope="module", params=["lstm", "lstm-int8", "gru", "elman"])
def engine(request: pytest.FixtureRequest, bundles: Mapping[str, Bundle]) -> OnnxEngine:
    return make_engine(bundles[request.param], threads=2)


def mixed_chunk(filtered: bool, selection: OutputSelection = DEFAULT_OUTPUTS) -> Chunk:
    """Return a chunk of free and forced steps with sampling parameters and targets of both kinds."""
    random = np.random.default_rng(11)
    tokens = random.integers(0, CHARACTERS.size, (ROWS, STEPS))
    tokens[random.random(tokens.shape) < 0.5] = FREE
    tokens[:, 0] = 5
    targets = random.integers(0, CHARACTERS.size, tokens.shape)
    targets[random.random(tokens.shape) < 0.5] = FREE
    changes: dict[str, Any] = {"uniforms": random.random(tokens.shape).astype(np.float32)}
    changes["temperatures"] = random.choice([0.5, 1.0, 2.0], ROWS).astype(np.float32)
    if filtered:
        changes["top_k"] = random.choice([3, CHARACTERS.size], ROWS)
        changes["top_p"] = random.choice([0.4, 1.0], ROWS).astype(np.float32)
        changes["min_p"] = random.choice([0, 0.3], ROWS).astype(np.float32)
    return make_chunk(tokens, selection=selection, targets=targets, **changes)


def run(engine: OnnxEngine, chunk: Chunk, first: int = 0) -> tuple[Results, list[dict[str, Any]]]:
    """Run a chunk from the initial state and return its results and the final states."""
    rows = range(first, first + len(chunk.uniforms))
    for row in range(rows.stop):
        engine.insert(row)
    results = engine.run(rows, chunk)
    engine.commit(rows)
    return results, [engine.extract(row) for row in rows]


@pytest.mark.parametrize("filtered", [False, True])
def test_tokens_do_not_depend_on_the_selected_outputs_bit_exactly(engine: OnnxEngine, filtered: bool) -> None:
    plain, states = run(engine, mixed_chunk(filtered))
    tokens = plain.tokens.copy()
    for selection in examples(FEW_SELECTIONS, everything=SELECTIONS):
        results, after = run(engine, mixed_chunk(filtered, selection))
        assert results.tokens.tolist() == tokens.tolist()
        assert all(same(*pair) for pair in zip(after, states, strict=True))
        assert not results.failed.any()
        assert (results.logits is not None) == selection.logits
        assert (results.log_probabilities is not None) == selection.log_probabilities
        assert bool(results.states) == selection.states
        assert bool(results.outputs) == selection.outputs


@pytest.mark.parametrize("filtered", [False, True])
def test_selected_outputs_equal_those_of_single_steps(engine: OnnxEngine, filtered: bool) -> None:
    """Compares a multi-step run with single-step runs and with arithmetic in double precision."""
    chunk = mixed_chunk(filtered, EVERYTHING)
    reported, _ = run(engine, chunk)
    given, targets = chunk.inputs["token"].copy(), chunk.targets
    assert targets is not None
    assert reported.logits is not None
    assert reported.log_probabilities is not None
    for row in range(ROWS):
        engine.insert(row)
    for step in range(STEPS):
        tokens = given[:, step]
        tokens = np.where(tokens == FREE, reported.tokens[:, step - 1], tokens)
        uniforms = chunk.uniforms[:, step : step + 1]
        options = {name: getattr(chunk, name) for name in ("temperatures", "top_k", "top_p", "min_p")}
        results = engine.run(
            range(ROWS),
            make_chunk(tokens[:, None], uniforms=uniforms, selection=OutputSelection(logits=True), **options),
        )
        assert results.logits is not None
        engine.commit(range(ROWS))
        assert results.tokens[:, 0].tolist() == reported.tokens[:, step].tolist()
        assert reported.outputs["logits"][:, step].tobytes() == results.logits.tobytes()
        meant = np.where(targets[:, step] == FREE, reported.tokens[:, step], targets[:, step])
        expected = log_softmax(results.logits)[np.arange(ROWS), meant]
        assert reported.log_probabilities[:, step] == pytest.approx(expected, abs=4e-7)
        for row in range(ROWS):
            assert same({name: values[row, step] for name, values in reported.states.items()}, engine.extract(row))
        if step == STEPS - 1:
            assert reported.logits.tobytes() == results.logits.tobytes()


@pytest.mark.parametrize("partitions", [1, 3])
def test_selected_outputs_do_not_depend_on_other_rows(engine: OnnxEngine, partitions: int) -> None:
    divide_rows(engine, partitions)
    chunk = mixed_chunk(True, EVERYTHING)
    for row in range(ROWS):
        engine.insert(row)
    together = run_partitioned(engine, chunk)
    assert together.logits is not None
    assert together.log_probabilities is not None
    kept = (together.logits.copy(), together.log_probabilities.copy(), together.outputs["logits"].copy())
    states = {name: values.copy() for name, values in together.states.items()}
    for row in (0, 1, 31, 63):
        for first in (0, 5):  # at any row
            alone, _ = run(engine, chunk.part(range(row, row + 1)), first)
            assert alone.logits is not None
            assert alone.log_probabilities is not None
            result = (alone.logits, alone.log_probabilities, alone.outputs["logits"])
            for values, expected in zip(result, kept, strict=True):
                assert values[0].tobytes() == expected[row].tobytes()
            assert same(alone.states, {name: values[row : row + 1] for name, values in states.items()})


def test_targets_default_to_the_chosen_tokens(engine: OnnxEngine) -> None:
    chunk = mixed_chunk(False, OutputSelection(log_probabilities=True, outputs=True))
    results, _ = run(engine, make_chunk(chunk.inputs["token"], uniforms=chunk.uniforms, selection=chunk.selection))
    expected = np.take_along_axis(log_softmax(results.outputs["logits"]), results.tokens[:, :, None], axis=2)
    assert results.log_probabilities == pytest.approx(expected[:, :, 0], abs=4e-7)


def test_runs_with_large_outputs_are_short(bundles: Mapping[str, Bundle]) -> None:
    engine = make_engine(bundles["lstm"])
    assert list(engine.step_counts_for(False, DEFAULT_OUTPUTS)) == list(COUNTS)
    assert list(engine.step_counts_for(True, OutputSelection(states=True))) == [1, 2, 4, 8]
    # enough for 5 steps of h and c of 2 layers
    engine.policy = EnginePolicy(output_bytes_limit=5 * ROWS * 4 * 37 * 4)
    assert list(engine.step_counts_for(False, OutputSelection(states=True))) == [1, 2, 4]
    assert list(engine.step_counts_for(False, OutputSelection(states=True, outputs=True))) == [1, 2, 4]
    assert list(engine.step_counts_for(False, OutputSelection(logits=True))) == [1, 2, 4, 8]
    engine.policy = EnginePolicy(output_bytes_limit=1)
    assert list(engine.step_counts_for(False, OutputSelection(outputs=True))) == [1]


def test_model_without_tokens_returns_states_and_outputs(bundles: Mapping[str, Bundle]) -> None:
    engine = make_engine(bundles["tags"])
    tokens = np.arange(12).reshape(3, 4)
    results, after = run(engine, make_chunk(tokens, selection=EVERYTHING))
    assert (results.logits, results.log_probabilities) == (None, None)
    assert set(results.states) == {state.input_name for state in bundles["tags"].spec.step.states}
    for row, state in enumerate(after):
        assert same({name: values[row, -1] for name, values in results.states.items()}, state)
    assert results.outputs["logits"].shape == (3, 4, 3)


def test_row_axis_of_a_third_party_bundle_is_respected_in_selected_outputs(column_bundle: Bundle) -> None:
    engine = make_engine(column_bundle, capacity=4)
    results, _ = run(engine, make_chunk(np.array([[1, 2], [0, 1], [2, 2]]), selection=EVERYTHING))
    assert results.states["before"].tolist() == [[[1.5] * 2, [3.5] * 2], [[0.5] * 2, [1.5] * 2], [[2.5] * 2, [4.5] * 2]]
    assert results.outputs["scores"].tolist() == results.states["before"].tolist()


@pytest.mark.parametrize("width", [1, 2, 16, 17, 96, 1000, 32_003])
def test_log_probabilities_of_any_vocabulary_size(width: int) -> None:
    """The result is rounded once, for any logits, and is the same for a single row."""
    nodes = Nodes()
    add_log_probabilities(nodes, [add_score(nodes, "logits", "token", width)], "found")
    inputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", width]),
        helper.make_tensor_value_info("token", TensorProto.INT64, ["B", 1]),
    ]
    outputs = [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["B", 1])]
    graph = helper.make_graph(nodes.nodes, "scores", inputs, outputs, nodes.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = open_graph(model.SerializeToString())
    random = np.random.default_rng(width)
    rows = 40
    logits = (random.normal(size=(rows, width)) * random.choice([0.1, 3, 30], (rows, 1))).astype(np.float32)
    logits[0] -= 1000
    logits[1, 1:] = -np.inf
    tokens = random.integers(0, width, (rows, 1))
    tokens[1] = width - 1
    (result,) = session.run(None, {"logits": logits, "token": tokens})
    expected = np.take_along_axis(log_softmax(logits), tokens, axis=1)
    assert result == pytest.approx(expected, rel=1e-7, abs=3e-7)
    for row in range(rows):
        part = slice(row, row + 1)
        (alone,) = session.run(None, {"logits": logits[part], "token": tokens[part]})
        assert alone.tobytes() == result[part].tobytes()
    for bad in (np.nan, np.inf):
        logits[2, width // 2] = bad
        (result,) = session.run(None, {"logits": logits, "token": tokens})
        assert np.isnan(result[2, 0])
        assert np.isfinite(result[3:]).all()


def test_likely_graphs_are_opened_in_advance(bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(bundles["lstm"], capacity=4)
    autotune(engine)
    monkeypatch.delattr("elman_server.engine.graphs.unroll")
    for selection in (OutputSelection(logits=True), OutputSelection(log_probabilities=True)):
        results, _ = run(engine, make_chunk(np.array([[1], [2]]), selection=selection))
        assert (results.logits is None) != (results.log_probabilities is None)
    with pytest.raises(NameError):
        run(engine, make_chunk(np.array([[1], [2]]), selection=EVERYTHING))
