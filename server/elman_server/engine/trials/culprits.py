"""Which node of a graph makes a row depend on something else: the first one whose result differs between two runs while
what it reads does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

from elman_server.engine.comparison import with_all_values
from elman_server.engine.foreign_graphs import read_graph
from elman_server.engine.interface import Arrays
from elman_server.engine.nested_graphs import names_read, nodes_inside
from elman_server.engine.providers import open_plain
from elman_server.engine.trials.graph import TrialGraph

_FIXED_SCALES = "Quantize with fixed scales, as onnxruntime's quantize_static or elman's quantize='int8' does"
_NO_CHANCE = "Export the module without it, such as in torch's eval mode"
# By the beginning of the operator's name.
_REMEDIES = {
    "BatchNormalization": "Export the module in torch's eval mode",
    "Bernoulli": _NO_CHANCE,
    "Dropout": _NO_CHANCE,
    "DynamicQuantize": _FIXED_SCALES,
    "Multinomial": _NO_CHANCE,
    "Random": _NO_CHANCE,
}


@dataclass(frozen=True)
class Culprit:
    """A node, in words, and what to do about it."""

    node: str
    remedy: str


def find_culprit(graph: TrialGraph, runs: tuple[Arrays, Arrays], rows: NDArray[np.bool_]) -> Culprit | None:
    """Find the node at which two runs begin to differ.

    Args:
        graph: the graph.
        runs: the inputs of both, [rows, ...] each.
        rows: bool, in which of the rows the inputs are equal.

    Returns:
        The node; None if it cannot be found.
    """
    with contextlib.suppress(Exception):  # It is for the error message only, and graphs may be damaged in any way.
        model = onnx.inliner.inline_local_functions(read_graph(graph.path))
        return next(_differing(model, [graph.turned(feeds) for feeds in runs], rows), None)
    return None


def _differing(
    model: onnx.ModelProto, runs: list[dict[str, NDArray[Any]]], rows: NDArray[np.bool_]
) -> Iterator[Culprit]:
    made = [name for node in model.graph.node for name in node.output if name]
    session = open_plain(with_all_values(model))
    first, second = (dict(zip(made, session.run(made, feeds), strict=True)) for feeds in runs)
    differing = {name for name in made if _part(first[name], rows).tobytes() != _part(second[name], rows).tobytes()}
    for node in model.graph.node:
        if differing.intersection(node.output) and not differing.intersection(names_read([node])):
            yield _described(node)


def _part(value: Any, rows: NDArray[np.bool_]) -> NDArray[Any]:
    """The part of a tensor that belongs to the rows; all of it if it has no axis of rows."""
    array = np.asarray(value)
    axis = next((axis for axis, size in enumerate(array.shape) if size == len(rows)), None)
    if axis is not None:
        return np.compress(rows, array, axis)
    if array.ndim and array.size and not len(array) % len(rows):  # Rows and another axis in one.
        return np.compress(rows, array.reshape(len(rows), -1), 0)
    return array


def _described(node: onnx.NodeProto) -> Culprit:
    words = f"{node.op_type} {node.name!r}" if node.name else f"the {node.op_type} that computes {node.output[0]!r}"
    for inner in nodes_inside(node):
        remedy = _remedy(inner)
        if remedy is not None:
            return Culprit(f"{inner.op_type} inside {words}", remedy)
    return Culprit(words, _remedy(node) or "Compute nothing across the row axis")


def _remedy(node: onnx.NodeProto) -> str | None:
    return next((remedy for start, remedy in _REMEDIES.items() if node.op_type.startswith(start)), None)
