"""Graphs of plain ONNX nodes, made without torch or the export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from elman_bundle import Bundle, load_bundle, write_bundle, write_tokens
from elman_protos import v1
from elman_server.engine import Chunk, OnnxEngine
from tests.support.reference import open_graph


def make_products_graph() -> onnx.ModelProto:
    """Return a graph that multiplies x [rows, 21] by two weights, one of which onnxruntime transposes on loading."""
    generator = np.random.default_rng(0)
    first = generator.standard_normal((21, 33), dtype=np.float32)
    second = generator.standard_normal((35, 33), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["between"]),
        helper.make_node("Transpose", ["second"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["between", "turned"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 21])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 35])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_column_bundle(folder: Path) -> Bundle:
    """Write a bundle without torch: a running sum whose state has its rows on axis 1."""
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


def write_labelling(folder: Path, model: onnx.ModelProto, size: int) -> Bundle:
    """Write a bundle of a graph that labels steps: (int64[B] token, float[B, size] h) => (scores, next), both
    float[B, size]. It reads the characters from "a" on."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "step.onnx")
    write_tokens(folder / "tokens.json", list("abcdefgh"))
    write_tokens(folder / "labels.json", [f"label{number}" for number in range(size)])
    spec = v1.ModelSpec(manifest_version=1, name="foreign", step=v1.StepSpec(file="step.onnx"))
    spec.vocabularies.add(name="tokens", kind=v1.VOCABULARY_KIND_CHARACTERS, file="tokens.json", size=8)
    spec.vocabularies.add(name="labels", kind=v1.VOCABULARY_KIND_LABELS, file="labels.json", size=size)
    spec.step.inputs.add(name="token", data_type=v1.DATA_TYPE_INT64).token.vocabulary = "tokens"
    numbers = {"data_type": v1.DATA_TYPE_FLOAT32, "shape": [size]}
    spec.step.states.add(input_name="h", output_name="next", **numbers)
    meaning = spec.step.outputs.add(name="scores", **numbers).label_logits
    meaning.vocabulary, meaning.scope = "labels", v1.LABEL_SCOPE_STEP
    write_bundle(folder, spec)
    return load_bundle(folder)


def labelling(nodes: str, *, opset: int, size: int = 3, rest: str = "") -> onnx.ModelProto:
    """A graph for `write_labelling`.

    Args:
        nodes: in ONNX's text format; they read h and `number`, float[B, 1], and write scores and next.
        opset: the version of ONNX's operators.
        size: of the state.
        rest: the functions of the package "local".
    """
    imports = f'["": {opset}, "local": 1]'
    axes = "Constant<value_ints=[1]>()" if opset >= 12 else "Constant<value=int64[1] {1}>()"
    widen = f"axes = {axes} number = Unsqueeze(plain, axes)" if opset >= 13 else "number = Unsqueeze<axes=[1]>(plain)"
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: {imports}>
        labelling (int64[B] token, float[B, {size}] h) => (float[B, {size}] scores, float[B, {size}] next) {{
            plain = Cast<to=1>(token)
            {widen}
            {nodes}
        }}
        {rest}"""
    )


def labelling_alone(bundle: Bundle, ids: list[int]) -> NDArray[np.float32]:
    """The scores of a sequence, [steps, size], as onnxruntime computes them from the file."""
    session = open_graph(bundle.graph_path)
    state = np.zeros((1, *bundle.spec.step.states[0].shape), np.float32)
    scores = []
    for token in ids:
        found, state = session.run(["scores", "next"], {"token": np.array([token]), "h": state})
        scores.append(found[0])
    return np.stack(scores)


def labelling_served(engine: OnnxEngine, ids: list[int]) -> NDArray[np.float32]:
    """The scores of a sequence, [steps, size], in one run of as many steps."""
    engine.insert(0)
    one, steps = np.ones(1, np.float32), np.zeros((1, len(ids)), np.float32)
    chunk = Chunk({"token": np.array([ids])}, steps, one, np.zeros(1, np.int64), one, 0 * one)
    scores: NDArray[np.float32] = engine.run(range(1), chunk).outputs["scores"][0].copy()
    return scores
