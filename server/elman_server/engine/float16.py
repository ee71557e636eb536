"""Steps in float16 on the CPU, which computes float16 in float32.

onnxruntime converts the weights to float32 once if one node reads them, and in every run if several steps do. Products
of the two kinds differ in the last bit, and those of the second kind between batches of one row and of more. So every
node gets the weights in float32 here, and its other inputs and its results are those that onnxruntime would give it: it
inserts casts around every node, and removes each pair of them between two nodes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from elman_server.engine.nested_graphs import STANDARD_DOMAINS, names_read

_WIDE = "/float32"
# They fix the type of a result, or have graphs inside, whose casts onnxruntime inserts itself.
_KEPT = {"Cast", "CastLike", "Constant", "ConstantOfShape", "If", "Loop", "Scan"}
_TYPES = {"dtype", "output_dtype", "to"}


def compute_in_float32(model: onnx.ModelProto) -> None:
    """Let the nodes of a graph compute float16 in float32. Its inputs and outputs stay what they are."""
    graph = model.graph
    sides = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    if TensorProto.FLOAT16 not in (*sides, *(weight.data_type for weight in graph.initializer)):
        return
    kinds = _kinds(model)
    weights = {weight.name: weight for weight in graph.initializer}
    wide: dict[str, str] = {}
    taken = set(kinds) | {name for node in graph.node for name in (*node.input, *node.output)}
    nodes: list[onnx.NodeProto] = []

    def widened(name: str) -> str:
        if name not in wide:
            wide[name] = _free(f"{name}{_WIDE}", taken)
            if name in weights:
                value = numpy_helper.to_array(weights[name]).astype(np.float32)
                graph.initializer.append(numpy_helper.from_array(value, wide[name]))
            else:
                nodes.append(helper.make_node("Cast", [name], [wide[name]], to=TensorProto.FLOAT))
        return wide[name]

    for node in list(graph.node):
        reads = [name for name in node.input if kinds.get(name) == TensorProto.FLOAT16]
        fixed = node.op_type in _KEPT or any(attribute.name in _TYPES for attribute in node.attribute)
        if node.domain not in STANDARD_DOMAINS or fixed or not reads:
            nodes.append(node)
            continue
        node.input[:] = [widened(name) if name in reads else name for name in node.input]
        nodes.append(node)
        for place, name in enumerate(node.output):
            if kinds.get(name) == TensorProto.FLOAT16:
                node.output[place] = wide[name] = _free(f"{name}{_WIDE}", taken)
                nodes.append(helper.make_node("Cast", [wide[name]], [name], to=TensorProto.FLOAT16))
    read = {*names_read(nodes), *(value.name for value in graph.output)}
    del graph.node[:]
    graph.node.extend(node for node in nodes if read.intersection(node.output))
    kept = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The element types of the tensors, by name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {weight.name: weight.data_type for weight in model.graph.initializer}


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
