"""Sums over the children of a node, in an order that does not depend on the rest of the batch.

onnxruntime sums an axis in an order that depends on the sizes of all axes, so the sum of a node would depend on the
other nodes and on its empty child positions. Running sums add one value after another, and the zeros after the last
child change nothing.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from elman_export.graph_names import CHILDREN

_AXIS = 1


def order_sums(model: ir.Model) -> None:
    """Replace every sum over the axis of children with the last of the running sums."""
    for node in list(model.graph):
        if node.op_type == "ReduceSum" and not node.domain and _is_over_children(node):
            _replace(model.graph, node)


def _is_over_children(node: ir.Node) -> bool:
    values, axes = (*node.inputs, None)[:2]
    if values is None or values.shape is None or axes is None or axes.const_value is None:
        return False
    rank = len(values.shape)
    summed = [int(axis) % rank for axis in axes.const_value.numpy().ravel()]
    size = values.shape[_AXIS] if rank > _AXIS else None
    return summed == [_AXIS] and isinstance(size, ir.SymbolicDim) and size.value == CHILDREN


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    keeps_axis = node.attributes.get_int("keepdims", 1)
    result = node.outputs[0]
    axis = _constant(np.array(_AXIS))
    last = _constant(np.array([-1] if keeps_axis else -1))
    running = ir.node("CumSum", [node.inputs[0], axis.outputs[0]])
    chosen = ir.node("Gather", [running.outputs[0], last.outputs[0]], {"axis": _AXIS})
    chosen.outputs[0].shape, chosen.outputs[0].type = result.shape, result.type
    chosen.outputs[0].name, result.name = result.name, None
    graph.insert_before(node, [axis, last, running, chosen])
    ir.convenience.replace_all_uses_with(result, chosen.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _constant(value: np.ndarray) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(value.astype(np.int64))})
