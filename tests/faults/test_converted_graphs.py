"""Graphs of older opsets and with functions are served as onnxruntime computes the original, or refused by operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_server.errors import ModelLoadError
from tests.support.engines import make_engine
from tests.support.graphs import labelling, labelling_alone, labelling_served, write_labelling

IDS = [1, 5, 2, 7]
# The scores of a step, as two rows of three: before opset 13 these operators took everything after their axis as one.
THREE_AXES = """
    next = Add(h, number)
    three = Constant<value = int64[3] {-1, 2, 3}>()
    two = Constant<value = int64[2] {-1, 6}>()
    squares = Mul(next, next)
    less = Sub(squares, number)
    x = Reshape(less, three)
    %s
    flat = Reshape(y, two)
    scores = Sub(flat, squares)
"""
PLAIN = "y = %s<axis = 1>(x)"
# Neither a trial nor a user has a million rows: only the comparison of both branches finds the first one.
BRANCH = """
    limit = Constant<value = int64 {1000000}>()
    sizes = Shape(next)
    most = ReduceMax<keepdims = 0>(sizes)
    large = Greater(most, limit)
    y = If (large) <
        then_branch = then () => (float[B, 2, 3] a) { inner = %s<axis = 1>(x) a = Identity(inner) },
        else_branch = else () => (float[B, 2, 3] a) { inner = Neg(x) a = Identity(inner) }
    >
"""
LOOP = """
    twice = Constant<value = int64 {2}>()
    yes = Constant<value = bool {1}>()
    y = Loop (twice, yes, x) <
        body = body (int64 i, bool on, float[B, 2, 3] a) => (bool still, float[B, 2, 3] b) {
            still = Identity(on) b = %s<axis = 1>(a)
        }
    >
"""


def write(folder: Path, nodes: str, opset: int, rest: str = "") -> Bundle:
    return write_labelling(folder / "bundle", labelling(nodes, opset=opset, size=6, rest=rest), 6)


def served(bundle: Bundle) -> NDArray[np.float32]:
    return labelling_served(make_engine(bundle, capacity=2), IDS)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("nodes", [PLAIN, BRANCH, LOOP])
def test_what_converters_respect_is_served_as_it_was(tmp_path: Path, operator: str, nodes: str) -> None:
    bundle = write(tmp_path, THREE_AXES % (nodes % operator), 11)
    assert served(bundle) == pytest.approx(labelling_alone(bundle, IDS), rel=1e-6)


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        (PLAIN, "Hardmax differs by 1"),
        (BRANCH, "Hardmax differs by 1"),
        (LOOP, r"Loop \(with Hardmax, Identity inside"),
    ],
)
def test_an_operator_that_they_overlook_is_named(tmp_path: Path, nodes: str, named: str) -> None:
    bundle = write(tmp_path, THREE_AXES % (nodes % "Hardmax"), 11)
    with pytest.raises(ModelLoadError, match=rf"graph of opset 11 computes something else .*: the operator {named}"):
        make_engine(bundle, capacity=2)


def test_an_operator_is_named_whose_result_has_another_name(tmp_path: Path) -> None:
    """Converters replace Upsample by Resize, which by default takes other points between two values."""
    nodes = """
        next = Add(h, number)
        shape = Constant<value = int64[4] {-1, 1, 2, 3}>()
        two = Constant<value = int64[2] {-1, 6}>()
        x = Reshape(next, shape)
        scales = Constant<value = float[4] {1.0, 1.0, 2.0, 1.0}>()
        larger = Upsample<mode = "linear">(x, scales)
        part = Slice<axes = [2], starts = [1], ends = [3]>(larger)
        scores = Reshape(part, two)
    """
    with pytest.raises(ModelLoadError, match="the operator Upsample differs by"):
        make_engine(write(tmp_path, nodes, 9), capacity=2)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Hardmax<axis = 2>(x)",
        "p, q = Split<axis = 1>(x) y = Concat<axis = 1>(q, p)",
        "u = Unsqueeze<axes = [3]>(x) v = Squeeze<axes = [3]>(u) w = ReduceSum<axes = [2]>(v) y = Add(w, x)",
        "y = Dropout<ratio = 0.5>(x)",
    ],
)
def test_what_has_not_changed_is_served(tmp_path: Path, nodes: str) -> None:
    bundle = write(tmp_path, THREE_AXES % nodes, 11)
    assert served(bundle) == pytest.approx(labelling_alone(bundle, IDS), rel=1e-6)


def test_an_operator_that_no_converter_knows_is_named(tmp_path: Path) -> None:
    nodes = "next = Add(h, number) scores = Affine<alpha = 2.0>(next)"
    with pytest.raises(
        ModelLoadError, match=r"graph of opset 8 cannot be converted: .*Affine.* with opset 18 or later"
    ):
        make_engine(write(tmp_path, nodes, 8), capacity=2)


FUNCTION = """
<domain: "local", opset_import: ["": %s, "local": 1]>
outer (a) => (d) { b = local.inner <factor = 2.0> (a) d = local.inner <factor = 0.5> (b) }
<domain: "local", opset_import: ["": %s]>
inner <factor> (a) => (d) {
    two = Constant<value_float: float = @factor>()
    b = Mul(a, two)
    c = Add(b, two)
    d = Tanh(c)
}
"""
CALLS = "next = Add(h, number) x = local.outer(next) y = local.inner <factor = 3.0> (x)"
CALL_IN_BRANCH = f"""
    {CALLS} limit = Constant<value = int64 {{2}}>() sizes = Shape(next) most = ReduceMax<keepdims = 0>(sizes)
    large = Greater(most, limit)
    scores = If (large) <
        then_branch = then () => (float[B, 6] a) {{ a = local.outer(y) }},
        else_branch = else () => (float[B, 6] a) {{ a = Neg(y) }}
    >
"""


@pytest.mark.parametrize("opset", [12, 15, 17, 18, 20])
@pytest.mark.parametrize("nodes", [CALLS + " scores = Identity(y)", CALL_IN_BRANCH])
def test_functions_are_served_at_every_opset(tmp_path: Path, opset: int, nodes: str) -> None:
    bundle = write(tmp_path, nodes, opset, FUNCTION % (opset, opset))
    assert served(bundle) == pytest.approx(labelling_alone(bundle, IDS), rel=1e-5)


def test_a_function_may_have_an_operator_that_has_changed(tmp_path: Path) -> None:
    function = '<domain: "local", opset_import: ["": 11]> coldest (a) => (c) { b = Neg(a) c = Hardmax<axis = 1>(b) }'
    bundle = write(tmp_path, THREE_AXES % "y = local.coldest(x)", 11, function)
    with pytest.raises(ModelLoadError, match="the operator Hardmax differs by 1"):
        make_engine(bundle, capacity=2)


def test_a_graph_may_consist_of_functions(tmp_path: Path) -> None:
    function = """<domain: "local", opset_import: ["": 15]> all (token, h) => (scores, next) {
        plain = Cast<to = 1>(token) one = Constant<value = int64[1] {1}>() number = Unsqueeze(plain, one)
        next = Add(h, number) scores = Tanh(next) }"""
    model = labelling("scores, next = local.all(token, h)", opset=15, size=6, rest=function)
    kept = [node for node in model.graph.node if node.domain]
    del model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(kept)
    model.opset_import.add(domain="local", version=1)
    bundle = write_labelling(tmp_path / "bundle", model, 6)
    assert served(bundle) == pytest.approx(labelling_alone(bundle, IDS), rel=1e-6)
