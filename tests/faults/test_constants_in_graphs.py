"""Constants anywhere in a graph are kept once, however many steps and graphs there are."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from elman_server.engine.foreign_graphs import check_graphs
from elman_server.engine.unrolling import unroll
from elman_server.errors import ModelLoadError
from tests.support.engines import make_engine
from tests.support.graphs import labelling, labelling_alone, labelling_served, write_labelling

SIZE = 64
STEPS = 8
IDS = [1, 5, 2, 7]
WEIGHT = np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32) / 8
SPARSE = np.where(WEIGHT > 0.15, WEIGHT, 0)

PRODUCT = "next = Add(h, number) y = MatMul(next, weight) scores = Tanh(y)"
BRANCH = """
    next = Add(h, number) limit = Constant<value_float = 3.0>() most = ReduceMax<keepdims = 0>(next)
    large = Greater(most, limit)
    y = If (large) <
        then_branch = then () => (float[B, 64] a) { part = MatMul(next, weight) a = Neg(part) },
        else_branch = else () => (float[B, 64] b) { b = MatMul(next, weight) }
    >
    scores = Tanh(y)
"""
LOOP = """
    next = Add(h, number) twice = Constant<value_int = 2>() yes = Constant<value = bool {1}>()
    y = Loop (twice, yes, next) <
        body = body (int64 i, bool on, float[B, 64] a) => (bool still, float[B, 64] c) {
            still = Identity(on)
            c = If (on) <
                then_branch = then () => (float[B, 64] d) { d = MatMul(a, weight) },
                else_branch = else () => (float[B, 64] e) { e = Identity(a) }
            >
        }
    >
    scores = Tanh(y)
"""
FUNCTION = """
<domain: "local", opset_import: ["": 20]> product (a) => (b) { b = MatMul(a, weight) }
"""
CALLS = "next = Add(h, number) x = local.product(next) y = local.product(x) scores = Tanh(y)"


def holding(name: str, value: TensorProto | None = None) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=value or numpy_helper.from_array(WEIGHT))


def sparse() -> SparseTensorProto:
    places = np.argwhere(SPARSE)
    values = numpy_helper.from_array(SPARSE[tuple(places.T)], "weight")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64)), list(SPARSE.shape))


def half(data_type: int) -> list[NodeProto]:
    value = helper.make_tensor("", data_type, WEIGHT.shape, WEIGHT.ravel().astype(np.float16))
    return [holding("half", value), helper.make_node("Cast", ["half"], ["weight"], to=TensorProto.FLOAT)]


# What computes the weight from constants alone.
FORMS: dict[str, list[NodeProto]] = {
    "Constant": [holding("weight")],
    "numbers": [
        helper.make_node("Constant", [], ["shape"], value_ints=[SIZE, SIZE]),
        helper.make_node("Constant", [], ["flat"], value_floats=WEIGHT.ravel().tolist()),
        helper.make_node("Reshape", ["flat", "shape"], ["weight"]),
    ],
    "sparse": [helper.make_node("Constant", [], ["weight"], sparse_value=sparse())],
    "float16": half(TensorProto.FLOAT16),
    "bfloat16": half(TensorProto.BFLOAT16),
    "rows of length 1": [
        holding("raw"),
        helper.make_node("Constant", [], ["last"], value_ints=[1]),
        helper.make_node("ReduceL2", ["raw", "last"], ["length"]),
        helper.make_node("Transpose", ["raw"], ["turned"]),
        helper.make_node("Div", ["turned", "length"], ["weight"]),
    ],
}


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def check(folder: Path, model: ModelProto) -> None:
    """All steps together are smaller than one weight, nothing in them is constant, and results are onnxruntime's."""
    bundle = write_labelling(folder / "bundle", model, SIZE)
    engine = make_engine(bundle, capacity=2)
    assert labelling_served(engine, IDS) == pytest.approx(labelling_alone(bundle, IDS), rel=1e-5, abs=1e-5)
    unrolled = unroll(engine._step, STEPS)
    assert len(unrolled.SerializeToString()) < WEIGHT.nbytes
    known = {tensor.name for tensor in unrolled.graph.initializer}
    for graph in graphs(unrolled.graph):
        assert graph is unrolled.graph or not graph.initializer
        constant = [node.op_type for node in graph.node if known.issuperset(filter(None, node.input))]
        assert set(constant) <= {"Identity"}


@pytest.mark.parametrize(
    ("nodes", "form"),
    [
        *((PRODUCT, form) for form in FORMS),
        *((CALLS, form) for form in FORMS if form != "sparse"),
        *((nodes, form) for nodes in (BRANCH, LOOP) for form in ("Constant", "sparse", "float16", "bfloat16")),
    ],
)
def test_constants_are_computed_once(tmp_path: Path, nodes: str, form: str) -> None:
    model = labelling(nodes, opset=20, size=SIZE, rest=FUNCTION if nodes is CALLS else "")
    for place in (*graphs(model.graph), *model.functions):
        if any("weight" in node.input for node in place.node):
            rest = list(map(copy.deepcopy, place.node))
            del place.node[:]
            place.node.extend([*FORMS[form], *rest])
    check(tmp_path, model)


@pytest.mark.parametrize("nodes", [PRODUCT, BRANCH, LOOP])
def test_initializers_are_kept_once(tmp_path: Path, nodes: str) -> None:
    model = labelling(nodes, opset=20, size=SIZE)
    for graph in graphs(model.graph):
        if any("weight" in node.input for node in graph.node):
            graph.initializer.append(numpy_helper.from_array(WEIGHT, "weight"))
    check(tmp_path, model)


def test_sparse_initializers_are_kept_once(tmp_path: Path) -> None:
    model = labelling(PRODUCT, opset=20, size=SIZE)
    model.graph.sparse_initializer.append(sparse())
    check(tmp_path, model)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.uint16, np.bool_, np.float64])
def test_tables_of_every_type_are_kept_once(tmp_path: Path, dtype: type) -> None:
    nodes = "next = Add(h, number) row = Gather(table, token) y = Cast<to = 1>(row) scores = Add(y, next)"
    model = labelling(nodes, opset=20, size=SIZE)
    model.graph.initializer.append(numpy_helper.from_array((100 * WEIGHT).astype(dtype), "table"))
    check(tmp_path, model)


def test_a_constant_of_a_function_is_kept_once_for_all_its_calls(tmp_path: Path) -> None:
    model = labelling(CALLS, opset=20, size=SIZE, rest=FUNCTION)
    model.functions[0].node.insert(0, holding("weight"))
    bundle = write_labelling(tmp_path / "bundle", model, SIZE)
    initializers = make_engine(bundle, capacity=2)._step.model.graph.initializer
    assert sum(tensor.dims == [SIZE, SIZE] for tensor in initializers) == 1


def test_names_of_branches_do_not_clash(tmp_path: Path) -> None:
    """Both branches may use one name for different constants, and a constant may be a result."""
    nodes = """
        next = Add(h, number) limit = Constant<value_float = 3.0>() most = ReduceMax<keepdims = 0>(next)
        large = Greater(most, limit)
        y = If (large) <
            then_branch = then () => (float factor) { factor = Constant<value_float = 2.0>() },
            else_branch = else () => (float b) { factor = Constant<value_float = 5.0>() b = Identity(factor) }
        >
        z = If (large) <
            then_branch = then () => (float c) { factor = Constant<value_float = 11.0>() c = Identity(factor) },
            else_branch = else () => (float d) { d = Constant<value_float = 13.0>() }
        >
        x = Mul(next, z) scores = Mul(x, y)
    """
    check(tmp_path, labelling(nodes, opset=20, size=SIZE))


def test_what_cannot_be_computed_alone_is_left_to_onnxruntime(tmp_path: Path) -> None:
    nodes = """
        next = Add(h, number) limit = Constant<value_float = 1000.0>() most = ReduceMax<keepdims = 0>(next)
        large = Greater(most, limit) flat = Constant<value_ints = [1, 2, 3]>()
        y = If (large) <
            then_branch = then () => (float a) {
                two = Constant<value_ints = [2]>() wrong = Reshape(flat, two) first = Cast<to = 1>(wrong)
                a = ReduceSum<keepdims = 0>(first)
            },
            else_branch = else () => (float b) { b = Constant<value_float = 5.0>() }
        >
        scores = Mul(next, y)
    """
    bundle = write_labelling(tmp_path / "bundle", labelling(nodes, opset=20, size=SIZE), SIZE)
    found = labelling_served(make_engine(bundle, capacity=2), IDS)
    assert found == pytest.approx(labelling_alone(bundle, IDS))


def test_a_sparse_constant_of_a_function_is_refused_before_onnxruntime_crashes(tmp_path: Path) -> None:
    model = labelling(CALLS, opset=20, size=SIZE, rest=FUNCTION)
    model.functions[0].node.insert(0, FORMS["sparse"][0])
    bundle = write_labelling(tmp_path / "bundle", model, SIZE)
    with pytest.raises(ModelLoadError, match="the function 'product' has a sparse constant"):
        check_graphs(bundle, node_limit=100)


_LOAD = """
import re, sys, time
from pathlib import Path
from elman_bundle import load_bundle
from elman_server.engine import Chunk, DEFAULT_OUTPUTS, EnginePolicy, OnnxEngine, Opener, ProviderChoice
def peak():
    return int(re.search("VmHWM:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1])
base, started = peak(), time.process_time()
opener = Opener(ProviderChoice.CPU, 1)
engine = OnnxEngine(load_bundle(Path(sys.argv[1])), capacity=2, opener=opener, run_seconds=1.0)
for count in (1, 2, 4, 8):
    engine._graphs.get(count, filtered=False, selection=DEFAULT_OUTPUTS)._together
print(peak() - base, time.process_time() - started)
"""


@pytest.mark.slow("loads models with 40 MB of weights")
@pytest.mark.parametrize("form", ["Constant", "float16"])
def test_loading_takes_little_more_memory_and_time_than_with_initializers(tmp_path: Path, form: str) -> None:
    size = 3200
    weight = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)

    def load(name: str, model: ModelProto) -> NDArray[np.float64]:
        bundle = write_labelling(tmp_path / name, model, size)
        run = [sys.executable, "-c", _LOAD, str(bundle.path)]
        return np.array(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split(), float)

    plain = labelling(PRODUCT, opset=20, size=size)
    plain.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    other = labelling(PRODUCT, opset=20, size=size)
    if form == "float16":
        half_value = numpy_helper.from_array(weight.astype(np.float16))
        other.graph.node.insert(0, helper.make_node("Cast", ["half"], ["weight"], to=TensorProto.FLOAT))
        other.graph.node.insert(0, holding("half", half_value))
    else:
        other.graph.node.insert(0, holding("weight", numpy_helper.from_array(weight)))
    expected, found = load("plain", plain), load("other", other)
    assert found[0] <= 1.2 * expected[0], "kB"
    assert found[1] <= 1.2 * expected[1] + 0.3, "s of the processor, of which other processes make some more"
