"""Outputs that score tokens or labels are logits: what is normalised already is refused at load and at export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from elman_bundle.scores import are_probabilities, find_normalisation
from elman_export import ExportError, Labels, NextToken, Token, Tree, export_bundle
from elman_export.contract import Output, Tensors
from elman_server.errors import ModelLoadError
from tests.support.bundles import CHARACTERS
from tests.support.foreign_bundles import LABELS, TOKENS, Foreign, Kept, random_weights
from tests.support.serving import serving

make = helper.make_node


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("own", name, ["x"], ["y"], nodes, [helper.make_opsetid("", 20)])


SOFTMAX = function("Normalise", make("Softmax", ["x"], ["z"], axis=1), make("Identity", ["z"], ["y"]))
DECOMPOSED = function(
    "Decomposed",
    make("Exp", ["x"], ["e"]),
    make("Constant", [], ["axis"], value_ints=[1]),
    make("ReduceSum", ["e", "axis"], ["sum"]),
    make("Div", ["e", "sum"], ["y"]),
)
_LAST: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "softmax": ([make("Softmax", ["logits"], ["scores"], axis=1)], "comes from Softmax"),
    "sigmoid, clipped": ([make("Sigmoid", ["logits"], ["p"]), make("Clip", ["p"], ["scores"])], "comes from Sigmoid"),
    "hard sigmoid": ([make("HardSigmoid", ["logits"], ["scores"])], "comes from HardSigmoid"),
    "in a function": ([make("Normalise", ["logits"], ["scores"], domain="own")], "comes from Softmax"),
    "in a branch": (
        [
            make(
                "If",
                ["always"],
                ["scores"],
                then_branch=branch("p", make("Sigmoid", ["logits"], ["p"])),
                else_branch=branch("q", make("Identity", ["logits"], ["q"])),
            )
        ],
        "comes from Sigmoid",
    ),
    "of other nodes": ([make("Decomposed", ["logits"], ["scores"], domain="own")], "probabilities that add up to 1"),
    "mixed with another distribution": (
        [
            make("Softmax", ["logits"], ["p"], axis=1),
            make("Softmax", ["read"], ["q"], axis=1),
            make("Mean", ["p", "q"], ["scores"]),
        ],
        "probabilities that add up to 1",
    ),
    "logarithms": ([make("LogSoftmax", ["logits"], ["scores"], axis=1)], ""),
    "more than one": ([make("Softmax", ["logits"], ["p"]), make("Add", ["p", "p"], ["scores"])], ""),
}


@pytest.mark.parametrize("kind", _LAST)
@pytest.mark.parametrize("children", [None, 2])
async def test_at_load(tmp_path: Path, kind: str, children: int | None) -> None:
    nodes, problem = _LAST[kind]
    sum_of_children = [make("ReduceSum", ["state", "axis"], ["before"], keepdims=0)]
    bundle = Foreign(
        [
            make("Gather", ["table", "token"], ["read"]),
            *(sum_of_children if children else [make("Identity", ["state"], ["before"])]),
            make("Add", ["before", "read"], ["logits"]),
            make("Tanh", ["logits"], ["after"]),
            *nodes,
        ],
        {**random_weights(table=(TOKENS, LABELS)), "always": np.array(True), "axis": np.array([1])},
        {"state": Kept("after", [LABELS])},
        functions=[SOFTMAX, DECOMPOSED],
        tree_children=children,
    ).write(tmp_path)
    if problem:
        with pytest.raises(ModelLoadError, match=f"the output 'scores' .*{problem}.*; a score is a logit"):
            async with serving(bundle):
                pass
    else:
        async with serving(bundle):
            pass


class Step(nn.Module):
    """A small step whose last layer is given."""

    def __init__(self, size: int, last: Callable[[Tensor], Tensor], children: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.of_children = children
        self.embedding, self.head, self.last = nn.Embedding(CHARACTERS.size, 4), nn.Linear(4, size), last

    def initial_state(self, rows: int) -> Tensors:
        return {"hidden": torch.zeros(rows, 4)}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        before = state["hidden"].sum(dim=1) if self.of_children else state["hidden"]
        hidden = torch.tanh(self.embedding(inputs["token"]) + before)
        return {"scores": self.last(self.head(hidden))}, {"hidden": hidden}


@pytest.mark.parametrize(
    ("last", "problem", "meaning"),
    [
        (lambda x: torch.softmax(x, dim=1), "has rows of probabilities that add up to 1", NextToken()),
        (lambda x: torch.softmax(x, dim=1), "has rows of probabilities that add up to 1", Labels(["a", "b", "c"])),
        (torch.sigmoid, "comes from Sigmoid", Labels(["a", "b", "c"])),
    ],
)
def test_at_export(tmp_path: Path, last: Callable[[Tensor], Tensor], problem: str, meaning: Output) -> None:
    size = CHARACTERS.size if isinstance(meaning, NextToken) else 3
    with pytest.raises(ExportError, match=rf"step\(\): the output 'scores' {problem}; .* Return what goes into"):
        export_bundle(
            Step(size, last),
            tmp_path / "bundle",
            name="step",
            inputs={"token": Token(CHARACTERS)},
            outputs={"scores": meaning},
        )


@pytest.mark.parametrize("tree", [None, Tree(2, 0)])
def test_a_single_label_at_export(tmp_path: Path, tree: Tree | None) -> None:
    with pytest.raises(
        ExportError, match=r"outputs\['scores'\]: got one label; its probability would always be 1\. Export"
    ):
        export_bundle(
            Step(1, nn.Identity(), children=tree is not None),
            tmp_path / "bundle",
            name="step",
            inputs={"token": Token(CHARACTERS)},
            outputs={"scores": Labels(["only"])},
            tree=tree,
        )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.2, 0.8], [0.5, 0.5]], True),
        ([[0.0, 1.0], [1.0, 0.0]], False),  # the logits of an automaton
        ([[-0.5, 1.5], [0.5, 0.5]], False),
        ([[0.2, 0.8], [0.5, 0.6]], False),
    ],
)
def test_probabilities_are_recognised(rows: Sequence[Sequence[float]], expected: bool) -> None:
    assert are_probabilities(np.array(rows, np.float32)) == expected


def test_a_function_that_calls_itself_ends() -> None:
    endless = function("Endless", make("Endless", ["x"], ["y"], domain="own"))
    graph = helper.make_graph([make("Endless", ["x"], ["scores"], domain="own")], "g", [], [])
    model = helper.make_model(graph, functions=[endless])
    assert find_normalisation(model, "scores") is None
