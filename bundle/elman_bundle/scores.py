"""The rules for outputs that score tokens or labels: they are logits, of which the server computes probabilities.

Of probabilities it would compute probabilities once more. A graph is read as a message; onnx need not be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

ONE_LABEL = (
    "got one label; its probability would always be 1. Export two labels with a logit each, such as 0 and the logit "
    "that there is"
)
LOGITS_ARE_SCORED = "a score is a logit, of which the server computes probabilities itself"

_NORMALISING = {"Softmax", "Sigmoid", "HardSigmoid"}
# Their results are values of their first input.
_PASSING = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Clip"}
_STANDARD = ("", "ai.onnx")
_DEEPEST = 16  # functions and branches inside each other; more may be a cycle
_ROUNDING = 1e-3


def find_normalisation(model: onnx.ModelProto, output: str) -> onnx.NodeProto | None:
    """Find the node that makes probabilities of an output's logits, also inside If and local functions.

    Args:
        model: a step graph.
        output: the name of the output.

    Returns:
        The node; None if there is none, or if something is computed of its result.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    return _find(output, model.graph.node, functions, _DEEPEST)


def _find(
    name: str, nodes: Sequence[onnx.NodeProto], functions: dict[tuple[str, str], onnx.FunctionProto], depth: int
) -> onnx.NodeProto | None:
    makers = {made: node for node in nodes for made in node.output}
    for _ in nodes:  # Not longer: a damaged graph may have a cycle.
        node = makers.get(name)
        if node is None or not depth:
            return None
        position = list(node.output).index(name)
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            return _find(function.output[position], function.node, functions, depth - 1)
        if node.domain not in _STANDARD:
            return None
        if node.op_type in _NORMALISING:
            return node
        if node.op_type == "If":
            branches = [attribute.g for attribute in node.attribute]
            found = [_find(branch.output[position].name, branch.node, functions, depth - 1) for branch in branches]
            return next(filter(None, found), None)
        if node.op_type not in _PASSING:
            return None
        name = node.input[0]
    return None


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Returns whether scores are the probabilities of alternatives: every row is non-negative and adds up to 1.

    Args:
        scores: [rows, alternatives], of several different rows. Ones and zeros alone are taken for logits.
    """
    exact = scores.astype(np.float64)
    sums = exact.sum(axis=1)
    fractions = (exact > 0) & (exact < 1)
    return bool((exact >= 0).all() and (np.abs(sums - 1) <= _ROUNDING).all() and fractions.any())
