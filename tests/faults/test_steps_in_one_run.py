"""K steps in one run give what K runs of one step and the graph of the bundle give, to the bit: whatever onnxruntime
would fuse across steps, and in float16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import structlog
from numpy.typing import NDArray
from onnx import helper

from elman_bundle import Bundle
from elman_server.engine import Chunk, OnnxEngine, Opener, OutputSelection, ProviderChoice, autotune
from elman_server.engine.trials.graph import TrialGraph, TrialOutput
from tests.support.foreign_bundles import LABELS, TOKENS, Foreign, Kept, Shown, random_weights
from tests.support.serving import QUICK_START

ROWS, STEPS = 4, 8
make = helper.make_node


class Case(NamedTuple):
    """The nodes from "read" and "hidden" to "after", what the scores are computed of, and whether steps must be
    separated."""

    nodes: Sequence[onnx.NodeProto]
    dtype: str = "float32"
    separated: bool = True
    scored: str = "after"
    shown: tuple[str, ...] = ()


TANH = [
    make("MatMul", ["hidden", "weights"], ["product"]),
    make("Add", ["product", "read"], ["sum"]),
    make("Tanh", ["sum"], ["after"]),
]
# The next step adds a vector to this step's product; together they are one operator.
PRODUCT = [
    make("Add", ["hidden", "bias"], ["biased"]),
    make("Add", ["biased", "read"], ["sum"]),
    make("Tanh", ["sum"], ["between"]),
    make("MatMul", ["between", "weights"], ["after"]),
]
# The same with an output that is a product: together they are one operator where it is not selected.
OUTPUT = [
    make("MatMul", ["hidden", "weights"], ["shown"]),
    make("Add", ["shown", "bias"], ["biased"]),
    make("Add", ["biased", "read"], ["sum"]),
    make("Tanh", ["sum"], ["after"]),
]
CASES = {
    "nothing to fuse": Case(TANH, separated=False),
    "a product at the end of a step": Case(PRODUCT, scored="between"),
    "a product that is an output": Case(OUTPUT, shown=("shown",)),
    "float16": Case(TANH, "float16"),
    "a product in float16": Case(PRODUCT, "float16", scored="between"),
    "a float16 output": Case(OUTPUT, "float16", shown=("shown",)),
}


def write(folder: Path, case: Case, *, generates: bool = False, size: int = 700) -> Bundle:
    """Sums of 700 numbers are added in another order in a fused operator."""
    width = TOKENS if generates else LABELS
    weights = random_weights(table=(TOKENS, size), weights=(size, size), bias=(size,), head=(size, width))
    weights["weights"] *= np.float32(0.1)
    shown = {name: Shown(None, [size], case.dtype) for name in case.shown}
    return Foreign(
        [make("Gather", ["table", "token"], ["read"]), *case.nodes, make("MatMul", [case.scored, "head"], ["scores"])],
        {name: value.astype(case.dtype) for name, value in weights.items()},
        {"hidden": Kept("after", [size], case.dtype)},
        {"scores": Shown("next_token" if generates else "labels", [width], case.dtype), **shown},
    ).write(folder)


def tuned(bundle: Bundle) -> OnnxEngine:
    engine = OnnxEngine(bundle, capacity=ROWS, opener=Opener(ProviderChoice.CPU, 1), run_seconds=10, policy=QUICK_START)
    autotune(engine)
    return engine


def run(engine: OnnxEngine, tokens: NDArray[Any], count: int, **selected: bool) -> list[bytes]:
    """The state after all steps, and the labels or tokens of each step."""
    rows = len(tokens)
    for row in range(rows):
        engine.insert(row)
    shown = []
    for start in range(0, STEPS, count):
        ones, zeros = np.ones(rows, np.float32), np.zeros(rows, np.float32)
        part = tokens[:, start : start + count]
        uniforms = np.full(part.shape, 0.5, np.float32)
        selection = OutputSelection(**selected)
        every = np.full(rows, engine.vocabulary_size)
        results = engine.run(range(rows), Chunk({"token": part}, uniforms, ones, every, ones, zeros, False, selection))
        engine.commit(range(rows))
        shown.append(results.tokens.copy() if engine.generates else results.outputs["scores"].copy())
    return [engine.extract(row)["hidden"].tobytes() for row in range(rows)] + [np.concatenate(shown, axis=1).tobytes()]


def single_steps(engine: OnnxEngine, bundle: Bundle, tokens: NDArray[Any]) -> list[bytes]:
    """The same from a plain loop over the bundle's graph."""
    opened = engine.graphs._opener.open(bundle.graph_path, bundle.graph_path)
    size, dtype = bundle.spec.step.states[0].shape[0], engine.extract(0)["hidden"].dtype
    outputs = {"after": TrialOutput([size]), "scores": TrialOutput([None])}
    graph = TrialGraph(bundle.graph_path, opened.session, 10.0, outputs)
    state, shown = np.zeros((len(tokens), size), dtype), []
    for step in range(STEPS):
        found = graph.run({"token": tokens[:, step], "hidden": state})
        state = found["after"]
        shown.append(found["scores"])
    return [*(row.tobytes() for row in state), np.stack(shown, axis=1).tobytes()]


@pytest.mark.parametrize("name", CASES)
def test_steps_in_one_run(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    bundle = write(tmp_path, case)
    with structlog.testing.capture_logs() as logged:
        engine = tuned(bundle)
    assert engine.graphs.separated == case.separated
    assert not [entry for entry in logged if entry["event"] == "steps not unrolled"]
    assert engine.step_counts_for(False, OutputSelection()) == [1, 4]
    tokens = np.random.default_rng(0).integers(0, TOKENS, (ROWS, STEPS))
    for rows in (1, ROWS):
        expected = single_steps(engine, bundle, tokens[:rows])
        assert run(engine, tokens[:rows], 1) == expected
        assert run(engine, tokens[:rows], 4) == expected
        assert run(engine, tokens[:rows], 1, states=True, outputs=True) == expected
        assert run(engine, tokens[:rows], 4, states=True, outputs=True) == expected
    assert run(engine, tokens[:1], 4)[0] == run(engine, tokens, 4)[0]


@pytest.mark.parametrize("name", ["a product at the end of a step", "float16"])
def test_tokens_of_steps_in_one_run(tmp_path: Path, name: str) -> None:
    engine = tuned(write(tmp_path, CASES[name], generates=True))
    assert engine.graphs.separated
    tokens = np.random.default_rng(0).integers(0, TOKENS, (ROWS, STEPS))
    expected = run(engine, tokens, 1)
    assert run(engine, tokens, 4) == expected
    assert run(engine, tokens, 1, logits=True, log_probabilities=True) == expected


def test_what_cannot_be_separated_takes_single_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elman_server.engine.graphs.StepGraphs.separate", lambda self: None)
    with structlog.testing.capture_logs() as logged:
        engine = tuned(write(tmp_path, CASES["a product at the end of a step"]))
    assert engine.step_counts_for(False, OutputSelection()) == [1]
    assert "steps not unrolled" in [entry["event"] for entry in logged]
