"""Drawing a token by its weight, inside the graph.

The first token whose cumulative weight exceeds uniform * total is drawn. No result depends on the number of rows.

Axes: B rows, V tokens, N columns.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from elman_server.decoding.in_graph.nodes import Nodes

LEAST_UNIFORM = np.float32(2.0**-100)  # above 0, so that a token without weight is never the first to exceed it

# From this vocabulary size on, a sum in two levels is faster and more exact than one cumulative sum.
WIDE_VOCABULARY = 1024


def add_draw(nodes: Nodes, weights: str, vocabulary_size: int, uniforms: str) -> tuple[str, str]:
    """Add the nodes that draw one token per row.

    Args:
        nodes: the nodes so far.
        weights: float32 [B, V].
        vocabulary_size: V.
        uniforms: float32 [B, 1]; see `add_choice`.

    Returns:
        The names of the tokens, int64 [B, 1], and of the totals of the weights, float32 [B, 1].
    """
    if vocabulary_size > WIDE_VOCABULARY:
        return _draw_in_two_levels(nodes, weights, vocabulary_size, uniforms)
    cumulative, total = add_cumulative(nodes, weights)
    return add_first_above(nodes, cumulative, nodes.add("Mul", uniforms, total)), total


def add_first_above(nodes: Nodes, cumulative: str, threshold: str) -> str:
    """Add the nodes that find the first column of [B, N] above [B, 1].

    Returns:
        The name of the columns, int64 [B, 1]; 0 where no column is above.
    """
    above = nodes.add("Cast", nodes.add("Greater", cumulative, threshold), to=TensorProto.FLOAT)
    return nodes.add("ArgMax", above, axis=1, keepdims=1)


def add_cumulative(nodes: Nodes, weights: str) -> tuple[str, str]:
    """Add the cumulative sums of [B, N] along the last axis; return their name and that of the last of them, [B, 1]."""
    sums = nodes.add("CumSum", weights, nodes.constant(np.int64(1)))
    return sums, add_last(nodes, sums)


def add_last(nodes: Nodes, values: str) -> str:
    """Add the last column of [B, N]; return its name, [B, 1]."""
    return nodes.add("Gather", values, nodes.constant(np.array([-1])), axis=1)


def _draw_in_two_levels(nodes: Nodes, weights: str, vocabulary_size: int, uniforms: str) -> tuple[str, str]:
    """Draw from a wide vocabulary: first a block of tokens by the sums of the blocks, then a token of the block."""
    width = int(np.ceil(np.sqrt(vocabulary_size)))
    blocks = -(-vocabulary_size // width)
    padding = np.array([0, 0, 0, blocks * width - vocabulary_size])
    padded = nodes.add("Pad", weights, nodes.constant(padding))
    table = nodes.add("Reshape", padded, nodes.constant(np.array([0, blocks, width])))
    # A product with ones: ReduceSum adds in an order that depends on the number of rows, CumSum takes 16 times as long.
    sums = nodes.add("MatMul", table, nodes.constant(np.ones((width, 1), np.float32)))
    sums = nodes.add("Squeeze", sums, nodes.constant(np.array([2])))
    cumulative, total = add_cumulative(nodes, sums)
    threshold = nodes.add("Mul", uniforms, total)
    block = add_first_above(nodes, cumulative, threshold)
    before = nodes.add("CumSum", sums, nodes.constant(np.int64(1)), exclusive=1)
    within = nodes.add("Sub", threshold, nodes.add("GatherElements", before, block, axis=1))
    chosen = nodes.add("GatherND", table, block, batch_dims=1)
    sums_within, total_within = add_cumulative(nodes, chosen)
    # Rounding can move the threshold to the end of the block, or before its beginning.
    most = nodes.add("Mul", total_within, nodes.constant(np.float32(1 - 2.0**-23)))
    least = nodes.add("Mul", total_within, nodes.constant(LEAST_UNIFORM))
    inside = add_first_above(nodes, sums_within, nodes.add("Max", least, nodes.add("Min", within, most)))
    start = nodes.add("Mul", block, nodes.constant(np.array([[width]])))
    return nodes.add("Add", start, inside), total
