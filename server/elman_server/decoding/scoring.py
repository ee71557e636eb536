"""How probable given tokens are, computed inside the graph, row by row, whoever shares the batch.

The log-probability of a token is its logit less the logarithm of the sum of the exponentials of all logits, those of
the untouched model: before any temperature, with the unknown token among them.

Axes: B rows, K steps, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from elman_server.decoding.nodes import Nodes

# A sum over more than so many columns is halved first.
_NARROW = 16


@dataclass(frozen=True)
class Score:
    """Names of what a log-probability is made of, float32 [B, 1] each.

    Attributes:
        logit: of the token.
        largest: the largest logit.
        total: the sum of the exponentials of all logits, each less the largest.
    """

    logit: str
    largest: str
    total: str


def add_score(nodes: Nodes, logits: str, token: str, vocabulary_size: int) -> Score:
    """Add the nodes that look at one token a row.

    Args:
        nodes: what they are added to.
        logits: float32 [B, V].
        token: int64 [B, 1].
        vocabulary_size: V.
    """
    largest = nodes.add("ReduceMax", logits, nodes.constant(np.array([1])), keepdims=1)
    weights = nodes.add("Exp", nodes.add("Sub", logits, largest))
    total = _add_total(nodes, weights, vocabulary_size)
    return Score(nodes.add("GatherElements", logits, token, axis=1), largest, total)


def add_log_probabilities(nodes: Nodes, scores: Sequence[Score], output: str) -> None:
    """Add the nodes that give the log-probabilities of all steps.

    Args:
        nodes: what they are added to.
        scores: K of them.
        output: the name of the result, float32 [B, K], rounded once; not a number where the logits held NaN or +inf, or
            were all -inf.
    """

    def joined(names: Sequence[str]) -> str:
        # Of all steps at once: a node is dear beside what it computes for one.
        return nodes.add("Cast", nodes.add("Concat", *names, axis=1), to=TensorProto.DOUBLE)

    distances = nodes.add("Sub", joined([score.logit for score in scores]), joined([score.largest for score in scores]))
    logarithms = nodes.add("Log", joined([score.total for score in scores]))
    nodes.add("Cast", nodes.add("Sub", distances, logarithms), output=output, to=TensorProto.FLOAT)


def _add_total(nodes: Nodes, weights: str, width: int) -> str:
    """The sums [B, 1] of [B, `width`] along its last axis, one half added to the other until few columns are left.

    ReduceSum adds in an order that depends on the number of rows; a product with ones rounds to ten bits on GPUs that
    have TF32; CumSum over everything takes several times as long and is less exact.
    """
    halvings = max(0, int(np.ceil(np.log2(width / _NARROW))))
    padding = -width % 2**halvings
    if padding:
        weights = nodes.add("Pad", weights, nodes.constant(np.array([0, 0, 0, padding])))
    for _ in range(halvings):
        weights = nodes.add("Add", *nodes.split(weights, 2, axis=1))
    cumulative = nodes.add("CumSum", weights, nodes.constant(np.int64(1)))
    return nodes.add("Gather", cumulative, nodes.constant(np.array([-1])), axis=1)
