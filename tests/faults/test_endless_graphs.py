"""Graphs that do not end, or that would take for ever to open, are refused with a sentence before they are served."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from elman_bundle import Bundle, BundleError, load_bundle
from elman_server.engine import EnginePolicy, OnnxEngine, OnnxTreeEngine, Opener, ProviderChoice, autotune
from elman_server.engine.foreign_graphs import check_graphs
from elman_server.errors import ModelLoadError
from elman_server.loading import find_bundles
from tests.support.encoder_models import translator_bundle
from tests.support.graphs import labelling, write_labelling
from tests.support.manifests import reseal
from tests.support.reference import open_graph
from tests.support.serving import QUICK_START, serving

IMPATIENT = replace(QUICK_START, trial_run_seconds=0.2, warm_up_seconds=0.4)
OPENER = Opener(ProviderChoice.CPU, 1)
ENDLESS = r"step\.onnx: a trial run has no result after 0\.2 seconds; .* a Loop with too many iterations"


def repeat(path: Path) -> None:
    """Let the first result of a graph wait for a loop of 2^62 iterations."""
    model, result = onnx.load(path), open_graph(path).get_outputs()[0]
    name = result.name
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, result.shape))
    for node in model.graph.node:
        node.output[:] = [f"{name}/before" if output == name else output for output in node.output]
        node.input[:] = [f"{name}/before" if given == name else given for given in node.input]
    scalars = [("iteration", TensorProto.INT64), ("on", TensorProto.BOOL), ("value", TensorProto.FLOAT)]
    results = [("still", TensorProto.BOOL), ("same", TensorProto.FLOAT)]
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["value"], ["same"])],
        "body",
        [helper.make_tensor_value_info(scalar, kind, []) for scalar, kind in scalars],
        [helper.make_tensor_value_info(scalar, kind, []) for scalar, kind in results],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "iterations"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    model.graph.node.append(helper.make_node("Loop", ["iterations", "", "zero"], ["end"], body=body))
    model.graph.node.append(helper.make_node("Add", [f"{name}/before", "end"], [name]))
    onnx.save(model, path)


def copy_of(bundle: Bundle, folder: Path, *, repeated: str) -> Bundle:
    path = shutil.copytree(bundle.path, folder / "bundle")
    repeat(path / repeated)
    return reseal(path)


@pytest.fixture
def labels(tmp_path: Path) -> Bundle:
    model = labelling("next = Add(h, number) scores = Tanh(next)", opset=20)
    return write_labelling(tmp_path / "labels", model, 3)


async def test_a_step_has_to_end(tmp_path: Path, labels: Bundle) -> None:
    bundle = copy_of(labels, tmp_path, repeated="step.onnx")
    started = time.monotonic()
    with pytest.raises(ModelLoadError, match=ENDLESS):
        async with serving(bundle, engine=IMPATIENT):
            pass
    assert time.monotonic() - started < 5


def test_an_encoder_has_to_end(tmp_path: Path) -> None:
    bundle = copy_of(translator_bundle(), tmp_path, repeated="encoder.onnx")
    with pytest.raises(ModelLoadError, match=ENDLESS.replace("step", "encoder")):
        OnnxEngine(bundle, capacity=2, opener=OPENER, run_seconds=0.001, policy=IMPATIENT)


def test_a_step_over_trees_has_to_end(tmp_path: Path, tree_bundles: Mapping[str, Bundle]) -> None:
    bundle = copy_of(tree_bundles["binary"], tmp_path, repeated="step.onnx")
    with pytest.raises(ModelLoadError, match=ENDLESS):
        OnnxTreeEngine(bundle, capacity=2, opener=OPENER, policy=IMPATIENT)


@pytest.mark.parametrize("results", ["scores = ", "scores, all = "])
def test_a_step_has_to_end_whatever_its_state(tmp_path: Path, results: str) -> None:
    """The first steps end: each has ten times as many iterations as the step before, and some keep all their values."""
    body = "go (int64 i, bool on, float[B, 3] a) => (bool still, float[B, 3] b, float[B, 3] c)"
    nodes = f"""
        ten = Constant<value_float = 10.0>() more = Mul(h, ten) first = Constant<value_float = 1.0>()
        next = Add(more, first) most = ReduceMax<keepdims = 0>(next) count = Cast<to = 7>(most)
        yes = Constant<value = bool {{1}}>()
        {results} Loop (count, yes, next) <body = {body} {{ still = Identity(on) b = Tanh(a) c = Identity(b) }}>
    """
    if "all" not in results:
        nodes = nodes.replace(", float[B, 3] c)", ")").replace("c = Identity(b)", "")
    bundle = write_labelling(tmp_path / "bundle", labelling(nodes, opset=20), 3)
    with pytest.raises(ModelLoadError, match=ENDLESS):
        OnnxEngine(bundle, capacity=2, opener=OPENER, run_seconds=0.001, policy=IMPATIENT)


def test_a_step_has_to_end_for_any_number_of_rows(tmp_path: Path) -> None:
    # More rows than trials have.
    nodes = """
        next = Add(h, number) rows = Shape<start = 0, end = 1>(h) eight = Constant<value_ints = [8]>()
        more = Sub(rows, eight) many = Constant<value_ints = [288230376151711744]>() counts = Mul(more, many)
        count = Squeeze(counts) yes = Constant<value = bool {1}>()
        scores = Loop (count, yes, next) <
            body = go (int64 i, bool on, float[B, 3] a) => (bool still, float[B, 3] b) {
                still = Identity(on) b = Tanh(a)
            }
        >
    """
    bundle = write_labelling(tmp_path / "bundle", labelling(nodes, opset=20), 3)
    engine = OnnxEngine(bundle, capacity=9, opener=OPENER, run_seconds=0.001, policy=replace(IMPATIENT, warm_up=True))
    with pytest.raises(ModelLoadError, match=r"has no result after 0\.4 seconds"):
        autotune(engine)


async def test_the_number_of_nodes_is_limited(labels: Bundle) -> None:
    graph = onnx.load(labels.graph_path)
    count = len(graph.graph.node)
    check_graphs(labels, node_limit=count)
    with pytest.raises(ModelLoadError, match=rf"has {count} nodes, .* at most {count - 1} are opened"):
        async with serving(labels, engine=replace(QUICK_START, node_limit=count - 1)):
            pass


def test_nodes_of_branches_and_functions_count(tmp_path: Path) -> None:
    nodes = """
        next = Add(h, number) yes = Constant<value = bool {1}>()
        scores = If (yes) <
            then_branch = then () => (float[B, 3] a) { a = local.f40(next) },
            else_branch = else () => (float[B, 3] b) { c = Neg(next) b = Neg(c) }
        >
    """
    imports = '<domain: "local", opset_import: ["": 20, "local": 1]>'
    functions = f"{imports} f0 (a) => (b) {{ b = Neg(a) }}" + "".join(
        f"{imports} f{number} (a) => (c) {{ b = local.f{number - 1}(a) c = local.f{number - 1}(b) }}"
        for number in range(1, 41)
    )
    bundle = write_labelling(tmp_path / "bundle", labelling(nodes, opset=20, rest=functions), 3)
    count = 2**40 + 2 + len(labelling(nodes, opset=20).graph.node)
    with pytest.raises(ModelLoadError, match=rf"has {count} nodes, .* at most 20000 are"):
        check_graphs(bundle, EnginePolicy().node_limit)


@pytest.mark.parametrize(
    ("count", "problem"), [(1, r"the function 'f0' calls itself"), (2_000, "functions .* are nested too deeply")]
)
def test_functions_that_call_functions_end_somewhere(tmp_path: Path, count: int, problem: str) -> None:
    imports = '<domain: "local", opset_import: ["": 20, "local": 1]>'
    functions = "".join(
        f"{imports} f{number} (a) => (b) {{ b = local.f{(number + 1) % count}(a) }}" for number in range(count)
    )
    model = labelling("next = Add(h, number) scores = local.f0(next)", opset=20, rest=functions)
    bundle = write_labelling(tmp_path / "bundle", model, 3)
    with pytest.raises(ModelLoadError, match=problem):
        check_graphs(bundle, node_limit=100)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "loop/step.onnx"])
def test_weights_in_a_file_that_no_path_leads_to_are_refused(labels: Bundle, name: str) -> None:
    (labels.path / "loop").symlink_to("loop")
    model = onnx.load(labels.graph_path)
    tensor = model.graph.initializer.add(name="weight", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    onnx.save(model, labels.graph_path)
    with pytest.raises(ModelLoadError, match=r"has weights in the file .*, which manifest"):
        check_graphs(labels, node_limit=100)


@pytest.mark.parametrize("read", [load_bundle, lambda path: find_bundles([path])])
def test_a_path_with_a_nul_is_none(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(BundleError, match=r"'.*a\\x00b.*': is no path: embedded null byte"):
        read(tmp_path / "a\0b")


@pytest.mark.parametrize("name", ["step.onnx", "tokens.json", "manifest.json"])
def test_a_link_that_leads_to_itself_is_no_path(labels: Bundle, name: str) -> None:
    (labels.path / name).unlink()
    (labels.path / name).symlink_to(name)
    with pytest.raises(BundleError, match=rf"{name}.*: is no path: Symlink loop"):
        load_bundle(labels.path)
