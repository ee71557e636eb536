"""Export of steps over trees: torch equals onnxruntime whatever the shape, and a node is nobody else's business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from elman import ExportError, Labels, NextToken, Token, Tree, Values, export_bundle
from elman_bundle import Bundle, load_bundle
from elman_export import Source
from elman_protos import v1
from tests.support.trees import (
    INNER,
    SENTIMENTS,
    WORDS,
    RandomTree,
    TreeLstm,
    graph_scores,
    random_tree,
    write_trees,
)

CELLS = {"binary": 2, "child-sum": 0}


def torch_scores(module: TreeLstm, tree: RandomTree) -> np.ndarray:
    """Node by node, each with as many places as it has children, one at least."""
    scores: dict[int, Tensor] = {}

    def state_of(node: int) -> dict[str, Tensor]:
        below = [state_of(child) for child in tree.children[node]]
        empty = [module.initial_state(1)] * max(module.child_count - len(below), 0 if below else 1)
        state = {name: torch.stack([one[name] for one in [*below, *empty]], dim=1) for name in ("hidden", "cell")}
        outputs, after = module.step({"token": torch.tensor([tree.tokens[node]])}, {}, state)
        scores[node] = outputs["logits"][0]
        return after

    with torch.no_grad():
        state_of(tree.root)
    return np.stack([scores[node].numpy() for node in range(len(tree.tokens))])


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("size", [1, 9, 60])
def test_torch_equals_onnxruntime_at_every_node(tree_bundles: Mapping[str, Bundle], name: str, size: int) -> None:
    tree = random_tree(size, CELLS[name], size)
    expected = torch_scores(TreeLstm(CELLS[name]).eval(), tree)
    np.testing.assert_allclose(graph_scores(tree_bundles[name], tree), expected, atol=2e-6, rtol=1e-4)


def test_the_manifest_says_what_a_row_is(tree_bundles: Mapping[str, Bundle]) -> None:
    for name, children in CELLS.items():
        step = tree_bundles[name].spec.step
        assert step.tree == v1.TreeSpec(child_count=children, inner_token_id=INNER)
        assert [list(state.shape) for state in step.states] == [[12], [12]]
        assert not any(state.WhichOneof("initial_value") for state in step.states)


def test_sums_over_children_are_made_in_one_order(tree_bundles: Mapping[str, Bundle]) -> None:
    """Running sums only where onnxruntime would otherwise choose the order by the number of children."""
    for name, operators in (("child-sum", {"CumSum": 2}), ("binary", {})):
        found = Counter(node.op_type for node in onnx.load(tree_bundles[name].graph_path).graph.node)
        assert {operator: found[operator] for operator in ("CumSum", "ReduceSum") if found[operator]} == operators


class KeepsAxis(TreeLstm):
    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + state["hidden"].sum(dim=1, keepdim=True)[:, 0, :5]}, after


def test_a_sum_that_keeps_its_axis(tmp_path: Path) -> None:
    write_trees(KeepsAxis(0), tmp_path / "own", "own", 0)
    bundle = load_bundle(tmp_path / "own")
    tree = random_tree(3, 0, 30)
    expected = torch_scores(KeepsAxis(0).eval(), tree)
    np.testing.assert_allclose(graph_scores(bundle, tree), expected, atol=2e-6, rtol=1e-4)


class MeanOfChildren(TreeLstm):
    """Divides by the number of places and not by that of children."""

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return outputs, {**after, "hidden": after["hidden"] + state["hidden"].mean(dim=1)}


class AcrossRows(TreeLstm):
    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] - outputs["logits"].mean(dim=0)}, after


class FixedChildren(TreeLstm):
    """Has a weight for each of four children."""

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        by_place = torch.arange(1.0, 5.0)[:, None]
        return super().step(inputs, constants, {name: value * by_place for name, value in state.items()})


class ManyStates(TreeLstm):
    """Returns the states of the children in the place of its own."""

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        return super().step(inputs, constants, state)[0], state


class StartsElsewhere(TreeLstm):
    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {name: value + 1 for name, value in super().initial_state(rows).items()}


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (MeanOfChildren(0), "a node's value changes with 1 empty positions after its children"),
        (AcrossRows(0), "does step\\(\\) compute anything across the row axis"),
        (FixedChildren(0), r"state.\w+: the graph takes 4 children and no other number"),
        (ManyStates(0), r"returns the state hidden as torch.float32 \(3, 4, 12\), but a node has torch.float32"),
        (StartsElsewhere(0), "hidden is not zero, but zeros stand for a missing child"),
    ],
)  # fmt: skip
def test_a_step_that_is_no_nodes_is_not_written(module: nn.Module, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=complaint):
        write_trees(module, tmp_path / "own", "own", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"inputs": {"token": Values([3])}}, "give one input, a Token"),
        ({"constants": {"image": Values([3])}}, "one token and no constants"),
        ({"source": Source(Token(WORDS), 9)}, "a tree has no source"),
        ({"outputs": {}}, "give an output that is Labels"),
        ({"outputs": {"logits": Labels(SENTIMENTS), "next": NextToken()}}, "no output can be NextToken"),
        ({"tree": Tree(children=-1, inner_id=0)}, "children: got -1; it must be 0, for any number, or more"),
        ({"tree": Tree(children=2, inner_id=40)}, "inner_id: got 40; the ids of the vocabulary are 0 to 39"),
        ({"quantize": "int8"}, "steps over trees are exported in their own precision only"),
    ],
)  # fmt: skip
def test_what_trees_do_not_have_is_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "name": "own",
        "inputs": {"token": Token(WORDS)},
        "outputs": {"logits": Labels(SENTIMENTS)},
        "tree": Tree(children=2, inner_id=INNER),
    }
    with pytest.raises(ExportError, match=complaint):
        export_bundle(TreeLstm(2), tmp_path / "own", **(options | changes))
    assert list(tmp_path.iterdir()) == []
