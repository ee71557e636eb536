"""Log-probabilities of given tokens, computed inside the graph.

The log-probability of a token is its logit less the logarithm of the sum of the exponentials of all logits. The logits
are those of the model itself: before any temperature, with the unknown token included. No row's result depends on the
other rows.

Axes: B rows, K steps, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from elman_server.decoding.in_graph.drawing import add_last
from elman_server.decoding.in_graph.nodes import Nodes

_SUMMED_COLUMNS = 16  # a sum over more columns is halved first


@dataclass(frozen=True)
class Score:
    """Names of the parts of a log-probability, float32 [B, 1] each.

    Attributes:
        logit: the logit of the token.
        largest: the largest logit.
        total: the sum of the exponentials of all logits less the largest.
    """

    logit: str
    largest: str
    total: str


def add_score(nodes: Nodes, logits: str, token: str, vocabulary_size: int) -> Score:
    """Add the nodes that score one token per row.

    Args:
        nodes: the nodes so far.
        logits: float32 [B, V].
        token: int64 [B, 1].
        vocabulary_size: V.
    """
    largest = nodes.add("ReduceMax", logits, nodes.constant(np.array([1])), keepdims=1)
    weights = nodes.add("Exp", nodes.add("Sub", logits, largest))
    total = _add_total(nodes, weights, vocabulary_size)
    return Score(nodes.add("GatherElements", logits, token, axis=1), largest, total)


def add_log_probabilities(nodes: Nodes, scores: Sequence[Score], output: str) -> None:
    """Add the nodes that compute the log-probabilities of all steps.

    Args:
        nodes: the nodes so far.
        scores: K scores.
        output: name of the result, float32 [B, K], rounded once from float64; NaN where the logits held NaN or +inf, or
            were all -inf.
    """

    def joined(names: Sequence[str]) -> str:
        # All steps together: a node costs more than what it computes for one.
        return nodes.add("Cast", nodes.add("Concat", *names, axis=1), to=TensorProto.DOUBLE)

    distances = nodes.add("Sub", joined([score.logit for score in scores]), joined([score.largest for score in scores]))
    logarithms = nodes.add("Log", joined([score.total for score in scores]))
    nodes.add("Cast", nodes.add("Sub", distances, logarithms), output=output, to=TensorProto.FLOAT)


def _add_total(nodes: Nodes, weights: str, width: int) -> str:
    """Add the sums of [B, `width`] along the last axis, by adding one half of the columns to the other until few are
    left; return their name, [B, 1].

    ReduceSum adds in an order that depends on the number of rows, a product with ones rounds to ten bits on GPUs with
    TF32, and CumSum over all columns takes several times as long and is less exact.
    """
    halvings = max(0, int(np.ceil(np.log2(width / _SUMMED_COLUMNS))))
    padding = -width % 2**halvings
    if padding:
        weights = nodes.add("Pad", weights, nodes.constant(np.array([0, 0, 0, padding])))
    for _ in range(halvings):
        weights = nodes.add("Add", *nodes.split(weights, 2, axis=1))
    cumulative = nodes.add("CumSum", weights, nodes.constant(np.int64(1)))
    return add_last(nodes, cumulative)
