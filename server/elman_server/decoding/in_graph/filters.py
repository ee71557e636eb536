"""Drawing among the most probable tokens, inside the graph: top-k, then top-p of what is left, then min-p.

Only the candidates, the most probable tokens of a row, are examined. Their number does not change a result: a row for
which they are too few is reported.

Axes: B rows, V tokens, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elman_server.decoding.in_graph.drawing import add_cumulative, add_first_above, add_last
from elman_server.decoding.in_graph.nodes import Nodes


@dataclass(frozen=True)
class Filters:
    """Names of the graph inputs that restrict rows to their most probable tokens.

    Attributes:
        top_k: int64 [B, 1], number of tokens; V for a row without the filter.
        top_p: float32 [B, 1], probability that the tokens together have to reach; 1 for a row without the filter.
        min_p: float32 [B, 1], least probability of a token, relative to the most probable one; 0 for a row without the
            filter.
        candidates: int64 [1], C; at least every top_k that is less than V.
    """

    top_k: str
    top_p: str
    min_p: str
    candidates: str


@dataclass(frozen=True)
class FilteredDraw:
    """Names of what `add_filtered_draw` computes.

    Attributes:
        token: int64 [B, 1]; of a row without filters, a token that is not to be used.
        is_filtered: bool [B, 1], the rows that have a filter.
        unsure: bool [B, 1], the rows that have a filter and too few candidates.
    """

    token: str
    is_filtered: str
    unsure: str


def add_filtered_draw(
    nodes: Nodes,
    distances: str,
    total: str,
    vocabulary_size: int,
    *,
    uniforms: str,
    temperatures: str,
    filters: Filters,
) -> FilteredDraw:
    """Add the nodes that draw one token per row among those that its filters leave.

    Args:
        nodes: the nodes so far.
        distances: float32 [B, V], the logits less the largest.
        total: float32 [B, 1], the sum of the weights of all tokens.
        vocabulary_size: V.
        uniforms: float32 [B, 1].
        temperatures: float32 [B, 1].
        filters: the graph inputs.
    """
    limited = nodes.add("Less", filters.top_k, nodes.constant(np.array([[vocabulary_size]])))
    token, seen_enough = _draw_among(nodes, distances, total, limited, uniforms, temperatures, filters)
    seen_all = nodes.add("GreaterOrEqual", filters.candidates, nodes.constant(np.array([vocabulary_size])))
    covered = nodes.add("Or", nodes.add("Or", limited, seen_all), seen_enough)
    below_one = nodes.add("Less", filters.top_p, nodes.constant(np.ones((1, 1), np.float32)))
    above_zero = nodes.add("Greater", filters.min_p, nodes.constant(np.zeros((1, 1), np.float32)))
    is_filtered = nodes.add("Or", limited, nodes.add("Or", below_one, above_zero))
    unsure = nodes.add("And", is_filtered, nodes.add("Not", covered))
    return FilteredDraw(token, is_filtered, unsure)


def _draw_among(
    nodes: Nodes, distances: str, total: str, limited: str, uniforms: str, temperatures: str, filters: Filters
) -> tuple[str, str]:
    """Add the draw among the candidates.

    Returns:
        The names of the tokens, int64 [B, 1], and of whether the candidates reach the top_p of their row or go below
        its min_p, bool [B, 1].
    """
    ids, values = _most_probable(nodes, distances, filters.candidates)
    rank = nodes.add(
        "Unsqueeze",
        nodes.add(
            "Range",
            nodes.constant(np.int64(0)),
            nodes.add("Squeeze", filters.candidates),
            nodes.constant(np.int64(1)),
        ),
        nodes.constant(np.array([0])),
    )
    zero = nodes.constant(np.float32(0))
    within_k = nodes.add("Less", rank, filters.top_k)
    weights = nodes.add("Where", within_k, nodes.add("Exp", nodes.add("Div", values, temperatures)), zero)
    _, seen = add_cumulative(nodes, weights)
    reference = nodes.add("Where", limited, seen, total)
    enough = nodes.add("Mul", filters.top_p, reference)
    before = nodes.add("CumSum", weights, nodes.constant(np.int64(1)), exclusive=1)
    probable = nodes.add("GreaterOrEqual", weights, filters.min_p)
    kept = nodes.add("Where", nodes.add("And", nodes.add("Less", before, enough), probable), weights, zero)
    kept_cumulative, kept_total = add_cumulative(nodes, kept)
    column = add_first_above(nodes, kept_cumulative, nodes.add("Mul", uniforms, kept_total))
    token = nodes.add("GatherElements", ids, column, axis=1)
    seen_low = nodes.add("Less", add_last(nodes, weights), filters.min_p)
    return token, nodes.add("Or", nodes.add("GreaterOrEqual", seen, enough), seen_low)


def _most_probable(nodes: Nodes, distances: str, candidates: str) -> tuple[str, str]:
    """Add the largest values, in descending order, of equals the lower id first; return the names of their ids and of
    the values, both [B, C]."""
    values = nodes.add("TopK", distances, candidates, axis=1)
    ids = f"{values}.ids"
    nodes.nodes[-1].output.append(ids)
    return ids, values
