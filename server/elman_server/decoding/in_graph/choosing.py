"""Choosing the next token inside the graph.

A token is drawn by inverting the cumulative distribution of softmax(logits / temperature) at the uniform number of its
row. Greedy choice is the same at the smallest temperature and the least uniform number: only the largest logits have
weight then, and of equals the first is chosen. No row's result depends on the other rows.

Axes: B rows, K choices, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elman_server.decoding.in_graph.drawing import WIDE_VOCABULARY, add_draw
from elman_server.decoding.in_graph.filters import Filters, add_filtered_draw
from elman_server.decoding.in_graph.nodes import Nodes

# A difference of logits divided by this is 0, or so large that exp() of its negative is 0.
GREEDY_TEMPERATURE = np.float32(1e-37)


@dataclass(frozen=True)
class Choice:
    """Names of what `add_choice` computes.

    Attributes:
        token: int64 [B, 1]; an arbitrary token where `add_checks` reports an error.
        distances: float32 [B, V], the logits less the largest.
        unsure: bool [B, 1], where the candidates were too few; None without filters.
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
    forbidden_tokens: Sequence[int],
    filters: Filters | None,
) -> Choice:
    """Add the nodes that choose one token per row.

    Args:
        nodes: the nodes so far.
        logits: float32 [B, V].
        vocabulary_size: V.
        uniforms: float32 [B, 1], at least LEAST_UNIFORM, at most 1 - 2^-23.
        temperatures: float32 [B, 1], at least GREEDY_TEMPERATURE.
        forbidden_tokens: the tokens that are never chosen.
        filters: the inputs that restrict rows to their most probable tokens, if any row wants that.
    """
    if forbidden_tokens:
        mask = np.zeros((1, vocabulary_size), np.float32)
        mask[0, list(forbidden_tokens)] = -np.inf
        logits = nodes.add("Add", logits, nodes.constant(mask))
    last_axis = nodes.constant(np.array([1]))
    largest = nodes.add("ReduceMax", logits, last_axis, keepdims=1)
    distances = nodes.add("Sub", logits, largest)
    weights = nodes.add("Exp", nodes.add("Div", distances, temperatures))
    token, total = add_draw(nodes, weights, vocabulary_size, uniforms)
    if filters is None:
        return Choice(token, distances)
    filtered = add_filtered_draw(
        nodes, distances, total, vocabulary_size, uniforms=uniforms, temperatures=temperatures, filters=filters
    )
    chosen = nodes.add("Where", filtered.is_filtered, filtered.token, token)
    return Choice(chosen, distances, filtered.unsure)


def add_checks(nodes: Nodes, choices: Sequence[Choice], vocabulary_size: int, output: str) -> None:
    """Add the nodes that report where no token could be chosen.

    Args:
        nodes: the nodes so far.
        choices: K choices.
        vocabulary_size: V.
        output: name of the result, float32 [B, K]: NaN where the logits held NaN or +inf or every token was forbidden,
            +inf where the candidates were too few, finite elsewhere. A finite value has no meaning, and may depend on
            other rows.
    """
    unsure = [choice.unsure for choice in choices if choice.unsure is not None]
    sums = None if unsure else output
    # A node costs more than what it computes for one choice, so narrow ones are checked together. For a wide vocabulary
    # the copy would cost more.
    if vocabulary_size <= WIDE_VOCABULARY:
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
