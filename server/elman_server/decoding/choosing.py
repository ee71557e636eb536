"""Choosing the next token inside the graph, row by row, whoever shares the batch.

A token is drawn by the inverse of the cumulative distribution of softmax(logits / temperature) at the row's uniform
number: the first token whose cumulative weight exceeds uniform * total. Greedy is the same at the smallest temperature
and a uniform number next to nothing, which leaves weight on the largest logits only and takes the first of equals.

Axes: B rows, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elman_server.decoding.nodes import Nodes

# Differences of logits divided by this are 0 or beyond what exp() tells from 0.
GREEDY_TEMPERATURE = np.float32(1e-37)
# Above 0, so that a token without weight is never the first to exceed it.
LEAST_UNIFORM = np.float32(2.0**-100)

# From here on a sum in two levels is faster than one cumulative sum over everything, and more exact.
_WIDE = 1024


@dataclass(frozen=True)
class Filters:
    """Names of the graph inputs that keep rows to their most probable tokens.

    Attributes:
        top_k: int64 [B, 1], how many tokens at most; V for a row that does not ask.
        top_p: float32 [B, 1], the share of probability that is enough; 1 for a row that does not ask.
        min_p: float32 [B, 1], the least probability beside that of the most probable token; 0 for a row that does not
            ask.
        candidates: int64 [1], how many of the most probable tokens are looked at; at least every row's top_k, except
            of those that have V.
    """

    top_k: str
    top_p: str
    min_p: str
    candidates: str


@dataclass(frozen=True)
class Choice:
    """Names of what `add_choice` computes.

    Attributes:
        token: int64 [B, 1]; meaningless, but a token, where `add_checks` finds fault.
        distances: float32 [B, V], of the logits to the largest.
        unsure: bool [B, 1], where `candidates` were too few to tell; None without filters.
    """

    token: str
    distances: str
    unsure: str | None = None


def add_choice(
    nodes: Nodes,
    logits: str,
    vocabulary_size: int,
    *,
    uniforms: str,
    temperatures: str,
    forbidden_token: int | None,
    filters: Filters | None,
) -> Choice:
    """Add the nodes that choose one token a row.

    Args:
        nodes: what they are added to.
        logits: float32 [B, V].
        vocabulary_size: V.
        uniforms: float32 [B, 1], at least LEAST_UNIFORM and less than 1 by 2^-23 or more.
        temperatures: float32 [B, 1], at least GREEDY_TEMPERATURE.
        forbidden_token: a token that is never chosen.
        filters: what keeps rows to their most probable tokens, if any row asks for it.
    """
    if forbidden_token is not None:
        mask = np.zeros((1, vocabulary_size), np.float32)
        mask[0, forbidden_token] = -np.inf
        logits = nodes.add("Add", logits, nodes.constant(mask))
    last_axis = nodes.constant(np.array([1]))
    largest = nodes.add("ReduceMax", logits, last_axis, keepdims=1)
    distances = nodes.add("Sub", logits, largest)
    weights = nodes.add("Exp", nodes.add("Div", distances, temperatures))
    draw = _draw_in_two_levels if vocabulary_size > _WIDE else _draw
    token, total = draw(nodes, weights, vocabulary_size, uniforms)
    if filters is None:
        return Choice(token, distances)
    limited = nodes.add("Less", filters.top_k, nodes.constant(np.array([[vocabulary_size]])))
    kept, seen_enough = _draw_filtered(nodes, distances, total, limited, uniforms, temperatures, filters)
    seen_all = nodes.add("GreaterOrEqual", filters.candidates, nodes.constant(np.array([vocabulary_size])))
    covered = nodes.add("Or", nodes.add("Or", limited, seen_all), seen_enough)
    below_one = nodes.add("Less", filters.top_p, nodes.constant(np.ones((1, 1), np.float32)))
    above_zero = nodes.add("Greater", filters.min_p, nodes.constant(np.zeros((1, 1), np.float32)))
    asks = nodes.add("Or", limited, nodes.add("Or", below_one, above_zero))
    unsure = nodes.add("And", asks, nodes.add("Not", covered))
    return Choice(nodes.add("Where", asks, kept, token), distances, unsure)


def add_checks(nodes: Nodes, choices: Sequence[Choice], vocabulary_size: int, output: str) -> None:
    """Add the nodes that tell where no token could be chosen.

    Args:
        nodes: what they are added to.
        choices: K of them.
        vocabulary_size: V.
        output: the name of the result, float32 [B, K]: not a number where the logits held NaN or +inf, or every token
            was forbidden, and +inf where the candidates were too few. Only that: the values may depend on other rows.
    """
    unsure = [choice.unsure for choice in choices if choice.unsure is not None]
    sums = None if unsure else output
    # Of all choices at once: a node is dear beside what it computes for one. Of wide ones the copy would be dearer.
    if vocabulary_size <= _WIDE:
        shape = nodes.constant(np.array([0, len(choices), vocabulary_size]))
        joined = nodes.add("Concat", *(choice.distances for choice in choices), axis=1)
        table = nodes.add("Reshape", joined, shape)
        sums = nodes.add("ReduceSum", table, nodes.constant(np.array([2])), keepdims=0, output=sums)
    else:
        last_axis = nodes.constant(np.array([1]))
        each = [nodes.add("ReduceSum", choice.distances, last_axis, keepdims=1) for choice in choices]
        sums = nodes.add("Concat", *each, axis=1, output=sums)
    if unsure:
        infinite = nodes.constant(np.array([[np.inf]], np.float32))
        nodes.add("Where", nodes.add("Concat", *unsure, axis=1), infinite, sums, output=output)


def _first_above(nodes: Nodes, cumulative: str, threshold: str) -> str:
    """The first column of [B, N] above [B, 1]: int64 [B, 1]; 0 where none is, so that it always is a column."""
    above = nodes.add("Cast", nodes.add("Greater", cumulative, threshold), to=1)
    return nodes.add("ArgMax", above, axis=1, keepdims=1)


def _cumulative(nodes: Nodes, weights: str) -> tuple[str, str]:
    """The cumulative sums of [B, N] along its last axis, and the last of them, [B, 1]."""
    sums = nodes.add("CumSum", weights, nodes.constant(np.int64(1)))
    return sums, _last(nodes, sums)


def _last(nodes: Nodes, values: str) -> str:
    return nodes.add("Gather", values, nodes.constant(np.array([-1])), axis=1)


def _draw(nodes: Nodes, weights: str, vocabulary_size: int, uniforms: str) -> tuple[str, str]:
    """A token by its weight, and the weights' total."""
    cumulative, total = _cumulative(nodes, weights)
    return _first_above(nodes, cumulative, nodes.add("Mul", uniforms, total)), total


def _draw_in_two_levels(nodes: Nodes, weights: str, vocabulary_size: int, uniforms: str) -> tuple[str, str]:
    """`_draw` for a wide vocabulary: first a block of tokens by the blocks' sums, then a token of the block."""
    width = int(np.ceil(np.sqrt(vocabulary_size)))
    blocks = -(-vocabulary_size // width)
    padding = np.array([0, 0, 0, blocks * width - vocabulary_size])
    padded = nodes.add("Pad", weights, nodes.constant(padding))
    table = nodes.add("Reshape", padded, nodes.constant(np.array([0, blocks, width])))
    # A product with ones: ReduceSum adds in an order that depends on the number of rows, CumSum takes 16 times as long.
    sums = nodes.add("MatMul", table, nodes.constant(np.ones((width, 1), np.float32)))
    sums = nodes.add("Squeeze", sums, nodes.constant(np.array([2])))
    cumulative, total = _cumulative(nodes, sums)
    threshold = nodes.add("Mul", uniforms, total)
    block = _first_above(nodes, cumulative, threshold)
    before = nodes.add("CumSum", sums, nodes.constant(np.int64(1)), exclusive=1)
    within = nodes.add("Sub", threshold, nodes.add("GatherElements", before, block, axis=1))
    chosen = nodes.add("GatherND", table, block, batch_dims=1)
    sums_within, total_within = _cumulative(nodes, chosen)
    # Rounding may leave as much as the whole block, or less than nothing.
    most = nodes.add("Mul", total_within, nodes.constant(np.float32(1 - 2.0**-23)))
    least = nodes.add("Mul", total_within, nodes.constant(LEAST_UNIFORM))
    inside = _first_above(nodes, sums_within, nodes.add("Max", least, nodes.add("Min", within, most)))
    start = nodes.add("Mul", block, nodes.constant(np.array([[width]])))
    return nodes.add("Add", start, inside), total


def _draw_filtered(
    nodes: Nodes, distances: str, total: str, limited: str, uniforms: str, temperatures: str, filters: Filters
) -> tuple[str, str]:
    """A token among each row's most probable ones, [B, 1], and whether the candidates reach its top_p or fall below its
    min_p, bool [B, 1].

    First top-k, then top-p of what is left: the tokens whose more probable ones together fall short of top_p; then
    min-p. Nothing here depends on how many candidates there are as long as they reach.
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
    _, seen = _cumulative(nodes, weights)
    whole = nodes.add("Where", limited, seen, total)
    enough = nodes.add("Mul", filters.top_p, whole)
    before = nodes.add("CumSum", weights, nodes.constant(np.int64(1)), exclusive=1)
    probable = nodes.add("GreaterOrEqual", weights, filters.min_p)
    kept = nodes.add("Where", nodes.add("And", nodes.add("Less", before, enough), probable), weights, zero)
    kept_cumulative, kept_total = _cumulative(nodes, kept)
    place = _first_above(nodes, kept_cumulative, nodes.add("Mul", uniforms, kept_total))
    token = nodes.add("GatherElements", ids, place, axis=1)
    seen_low = nodes.add("Less", _last(nodes, weights), filters.min_p)
    return token, nodes.add("Or", nodes.add("GreaterOrEqual", seen, enough), seen_low)


def _most_probable(nodes: Nodes, distances: str, candidates: str) -> tuple[str, str]:
    """The ids and values of the largest, in order; of equals the lower id first."""
    values = nodes.add("TopK", distances, candidates, axis=1)
    ids = f"{values}.ids"
    nodes.nodes[-1].output.append(ids)
    return ids, values
