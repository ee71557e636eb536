"""Bundles that others made: what elman serves is what onnxruntime makes of them, and the rest is refused by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from elman import Label
from elman_bundle import (
    Bundle,
    BundleError,
    CharacterVocabulary,
    LabelVocabulary,
    SymbolVocabulary,
    WordVocabulary,
    load_bundle,
    write_bundle,
    write_tokens,
)
from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.engine.foreign_graphs import check_graphs
from elman_server.engine.rows import _fill
from elman_server.errors import ModelLoadError
from tests.support.manifests import change
from tests.support.serving import serving

LABELS = ["x", "y", "z"]
WEIGHTS = np.array([[1.0, 2.0, 4.0]], np.float32)


def write_delay_line(folder: Path, **state: Any) -> v1.ModelSpec:
    """Write the files of a model that labels a step by the two tokens before it. The next value of its second state is
    the value of the first one as it is."""
    folder.mkdir(exist_ok=True)
    scalar = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 1]) for name in ("first", "second")]
    nodes = [
        helper.make_node("Cast", ["token"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "one"], ["now"]),
        helper.make_node("MatMul", ["second", "weights"], ["old"]),
        helper.make_node("Sub", ["old", "number_column"], ["scores"]),
        helper.make_node("Mul", ["first", "three"], ["number_column"]),
    ]
    graph = helper.make_graph(
        [nodes[0], nodes[1], nodes[2], nodes[4], nodes[3]],
        "delay",
        [helper.make_tensor_value_info("token", TensorProto.INT64, ["B"]), *scalar],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 3]),
            helper.make_tensor_value_info("now", TensorProto.FLOAT, ["B", 1]),
            scalar[0],
        ],
        [
            numpy_helper.from_array(np.array([1]), "one"),
            numpy_helper.from_array(WEIGHTS, "weights"),
            numpy_helper.from_array(np.array([[0.5, 1.5, 2.5]], np.float32), "three"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "step.onnx")
    write_tokens(folder / "tokens.json", list("abcd"))
    write_tokens(folder / "labels.json", LABELS)
    spec = v1.ModelSpec(manifest_version=1, name="delay", step=v1.StepSpec(file="step.onnx"))
    spec.vocabularies.add(name="tokens", kind=v1.VOCABULARY_KIND_CHARACTERS, file="tokens.json", size=4)
    spec.vocabularies.add(name="labels", kind=v1.VOCABULARY_KIND_LABELS, file="labels.json", size=3)
    spec.step.inputs.add(name="token", data_type=v1.DATA_TYPE_INT64).token.vocabulary = "tokens"
    one = {"data_type": v1.DATA_TYPE_FLOAT32, "shape": [1], "fill": 0.0, **state}
    spec.step.states.add(input_name="first", output_name="now", **one)
    spec.step.states.add(input_name="second", output_name="first", **one)
    output = spec.step.outputs.add(name="scores", data_type=v1.DATA_TYPE_FLOAT32, shape=[3])
    output.label_logits.vocabulary = "labels"
    output.label_logits.scope = v1.LABEL_SCOPE_STEP
    return spec


@pytest.fixture
def delay_line(tmp_path: Path) -> Bundle:
    spec = write_delay_line(tmp_path / "delay")
    write_bundle(tmp_path / "delay", spec)
    return load_bundle(tmp_path / "delay")


def expected(text: str) -> list[str]:
    numbers = [0.0, 0.0, *(float("abcd".index(letter)) for letter in text)]
    rows = [
        numbers[at] * WEIGHTS[0] - numbers[at + 1] * np.array([0.5, 1.5, 2.5], np.float32) for at in range(len(text))
    ]
    return [LABELS[int(row.argmax())] for row in rows]


def names(labels: Sequence[Label]) -> list[str]:
    return [label.name for label in labels]


async def test_a_state_that_becomes_another_one_is_what_it_was(delay_line: Bundle) -> None:
    texts = ["dcbadabcddcbabbdca", "d", "aaaaaaaaabbbbbbbb", "bd" * 20]
    async with serving(delay_line) as running:
        for _ in range(2):
            for text in texts:
                assert names((await running.client.classify(text)).steps) == expected(text)
        found = await asyncio.gather(*(running.client.classify(text) for text in texts * 20))
        assert [names(prediction.steps) for prediction in found] == [expected(text) for text in texts * 20]


async def test_weights_in_a_file_of_their_own_are_part_of_the_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "delay"
    spec = write_delay_line(folder)
    model = onnx.load(folder / "step.onnx")
    onnx.save(model, folder / "step.onnx", save_as_external_data=True, location="step.onnx.data", size_threshold=42)
    write_bundle(folder, spec)
    with pytest.raises(ModelLoadError, match=r"step\.onnx: has weights in the file 'step\.onnx\.data', which manifest"):
        async with serving(load_bundle(folder)):
            pass
    spec.files.add(path="step.onnx.data")
    write_bundle(folder, spec)
    async with serving(load_bundle(folder)) as running:
        assert names((await running.client.classify("dcba")).steps) == expected("dcba")
    weights = bytearray((folder / "step.onnx.data").read_bytes())
    weights[-1] ^= 1
    (folder / "step.onnx.data").write_bytes(weights)
    with pytest.raises(BundleError, match=r"step\.onnx\.data: wrong digest"):
        load_bundle(folder)


@pytest.mark.parametrize(("kind", "axis"), [("Softmax", {"axis": 1}), ("Sigmoid", {})])
@pytest.mark.parametrize("passing", [[], ["Identity"], ["Identity", "Neg"]])
async def test_scores_are_logits(tmp_path: Path, kind: str, axis: dict[str, int], passing: list[str]) -> None:
    path = tmp_path / "delay" / "step.onnx"
    spec = write_delay_line(path.parent)
    model = onnx.load(path)
    last = model.graph.node[-1]
    last.output[0] = "logits"
    model.graph.node.append(helper.make_node(kind, ["logits"], ["scores" if not passing else "after0"], **axis))
    for number, name in enumerate(passing, 1):
        after = "scores" if number == len(passing) else f"after{number}"
        model.graph.node.append(helper.make_node(name, [f"after{number - 1}"], [after]))
    onnx.save(model, path)
    write_bundle(path.parent, spec)
    if "Neg" in passing:  # Something is computed of the probabilities: the model may mean that.
        async with serving(load_bundle(path.parent)) as running:
            assert len((await running.client.classify("dcba")).steps) == 4
        return
    with pytest.raises(ModelLoadError, match=rf"'scores' comes from {kind}; .* input of that node, 'logits'"):
        async with serving(load_bundle(path.parent)):
            pass


def test_a_graph_with_a_cycle_is_refused_by_onnxruntime_not_waited_for(delay_line: Bundle) -> None:
    model = onnx.load(delay_line.graph_path)
    model.graph.node[-1].output[0] = "unused"
    model.graph.node.append(helper.make_node("Identity", ["scores"], ["scores"]))
    onnx.save(model, delay_line.graph_path)
    check_graphs(delay_line, node_limit=100)


async def test_onnxruntime_prints_nothing(delay_line: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(delay_line.graph_path)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "nobody_uses_this"))  # It warns of that.
    onnx.save(model, delay_line.graph_path)
    write_bundle(delay_line.path, delay_line.spec)
    async with serving(load_bundle(delay_line.path)) as running:
        assert (await running.client.classify("dcba")).steps
    assert "onnxruntime" not in capfd.readouterr().err


async def test_a_single_label_is_refused(tmp_path: Path) -> None:
    spec = write_delay_line(tmp_path / "delay")
    write_tokens(tmp_path / "delay" / "labels.json", ["only"])
    spec.vocabularies[1].size = 1
    spec.step.outputs[0].shape[:] = [1]
    write_bundle(tmp_path / "delay", spec)
    with pytest.raises(ModelLoadError, match=r"vocabularies\[labels\]: got one label; its probability"):
        async with serving(load_bundle(tmp_path / "delay")):
            pass


@pytest.mark.parametrize(
    ("data_type", "fill", "problem"),
    [
        (v1.DATA_TYPE_FLOAT16, -1e30, "float16 has no such value"),
        (v1.DATA_TYPE_FLOAT32, 1e300, "float32 has no such value"),
        (v1.DATA_TYPE_INT64, 0.5, "int64 has no such value"),
        (v1.DATA_TYPE_INT32, 3e9, "int32 has no such value"),
        (v1.DATA_TYPE_INT64, float("nan"), "int64 has no such value"),
    ],
)
def test_an_initial_value_that_a_type_lacks_is_refused(
    tmp_path: Path, data_type: v1.DataType.ValueType, fill: float, problem: str
) -> None:
    spec = write_delay_line(tmp_path / "delay")
    write_bundle(tmp_path / "delay", spec)
    bundle = load_bundle(tmp_path / "delay")
    with pytest.raises(ModelLoadError, match=problem):
        _fill(bundle, "first", fill, np.dtype(element_type(data_type).dtype))
    for fine in (0.0, 1.0, -3.0):
        assert _fill(bundle, "first", fine, np.dtype(element_type(data_type).dtype)) == fine
    assert np.isneginf(_fill(bundle, "first", float("-inf"), np.dtype(np.float16)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CharacterVocabulary(["a", "\ud800"]),
        lambda: WordVocabulary(["a", " b\udfff"]),
        lambda: SymbolVocabulary(["a", "b\udc00"]),
        lambda: LabelVocabulary(["a", "\ud800b"]),
    ],
)
def test_half_of_a_surrogate_pair_is_no_token(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\\ud[8-9a-f].* has half of a surrogate pair in it, which is no character"):
        make()


@pytest.mark.parametrize("name", ["labels.json", "tokens.json"])
def test_a_bundle_with_such_a_token_names_it(delay_line: Bundle, name: str) -> None:
    path = delay_line.path / name
    content = path.read_text()
    path.write_text(content.replace('"a"', '"\\ud800"').replace('"x"', '"\\ud800"'))
    with pytest.raises(BundleError, match=rf"{name}: .*'\\ud800' has half of a surrogate pair"):
        write_bundle(delay_line.path, delay_line.spec)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def elsewhere(path: Path) -> None:
    moved = path.parent.parent / path.name
    path.rename(moved)
    path.symlink_to(moved)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("replace", [pipe, device, elsewhere, folder])
@pytest.mark.parametrize("name", ["step.onnx", "tokens.json", "manifest.json"])
def test_bundles_consist_of_files_in_their_folder(
    delay_line: Bundle, replace: Callable[[Path], None], name: str
) -> None:
    replace(delay_line.path / name)
    with pytest.raises(BundleError, match=r"out of the bundle|something else than a file"):
        load_bundle(delay_line.path)


@pytest.mark.parametrize("path", ["step\0.onnx", "../step.onnx", "/etc/hostname", "step\n.onnx"])
def test_paths_that_are_none_are_refused(delay_line: Bundle, path: str) -> None:
    change(delay_line.path, lambda manifest: manifest["files"].append({"path": path, "sha256": "0" * 64}))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        load_bundle(delay_line.path)
