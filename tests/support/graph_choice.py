"""A graph that does nothing but choose tokens from logits."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from elman_server.decoding.in_graph import Filters, Nodes, add_checks, add_choice
from tests.support.reference import open_graph


@cache
def session(width: int, forbidden: int | None, filtered: bool) -> onnxruntime.InferenceSession:
    nodes = Nodes()
    filters = Filters("top_k", "top_p", "min_p", "candidates") if filtered else None
    choice = add_choice(
        nodes,
        "logits",
        width,
        uniforms="uniforms",
        temperatures="temperatures",
        forbidden_tokens=() if forbidden is None else (forbidden,),
        filters=filters,
    )
    add_checks(nodes, [choice], width, "checks")
    inputs = [("logits", TensorProto.FLOAT, width), ("uniforms", TensorProto.FLOAT, 1)]
    inputs += [("temperatures", TensorProto.FLOAT, 1)]
    if filtered:
        inputs += [("top_k", TensorProto.INT64, 1), ("top_p", TensorProto.FLOAT, 1), ("min_p", TensorProto.FLOAT, 1)]
    values = [helper.make_tensor_value_info(name, kind, ["B", size]) for name, kind, size in inputs]
    if filtered:
        values.append(helper.make_tensor_value_info("candidates", TensorProto.INT64, [1]))
    outputs = [
        helper.make_tensor_value_info(choice.token, TensorProto.INT64, ["B", 1]),
        helper.make_tensor_value_info("checks", TensorProto.FLOAT, ["B", 1]),
    ]
    graph = helper.make_graph(nodes.nodes, "choice", values, outputs, nodes.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return open_graph(model.SerializeToString())


def choose(
    logits: Any, temperature: Any, uniform: Any, forbidden: int | None = None, **filters: Any
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the tokens and checks [B] for logits [B, V]; every other argument may be one value for all rows."""
    array = np.array(logits, dtype=np.float32)
    rows, width = array.shape

    def column(value: Any, kind: Any) -> NDArray[Any]:
        return np.broadcast_to(np.array(value, kind), (rows,))[:, None]

    feeds = {
        "logits": array,
        "temperatures": column(temperature, np.float32),
        "uniforms": column(uniform, np.float32),
    }
    if filters:
        feeds["top_k"] = column(filters.get("top_k", width), np.int64)
        feeds["top_p"] = column(filters.get("top_p", 1), np.float32)
        feeds["min_p"] = column(filters.get("min_p", 0), np.float32)
        feeds["candidates"] = np.array([filters.get("candidates", width)])
    tokens, checks = session(width, forbidden, bool(filters)).run(None, feeds)
    return tokens[:, 0], checks[:, 0]
