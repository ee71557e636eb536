"""Graphs of plain ONNX nodes, made without torch or the export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from elman_bundle import Bundle, load_bundle, write_bundle, write_tokens
from elman_protos import v1


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
