"""Export of tree steps: torch equals onnxruntime for any shape, and nodes do not affect each other."""

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
    """Return the scores computed node by node, each with one slot per child and at least one slot."""
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


def test_manifest_describes_the_rows_of_tree_steps(tree_bundles: Mapping[str, Bundle]) -> None:
    for name, children in CELLS.items():
        step = tree_bundles[name].spec.step
        assert step.tree == v1.TreeSpec(child_count=children, inner_token_id=INNER)
        assert [list(state.shape) for state in step.states] == [[12], [12]]
        assert not any(state.WhichOneof("initial_value") for state in step.states)


def test_sums_over_children_have_a_fixed_order(tree_bundles: Mapping[str, Bundle]) -> None:
    """Running sums are used only where onnxruntime would choose the order by the number of children."""
    for name, operators in (("child-sum", {"CumSum": 2}), ("binary", {})):
        result = Counter(node.op_type for node in onnx.load(tree_bundles[name].graph_path).graph.node)
        assert {operator: result[operator] for operator in ("CumSum", "ReduceSum") if result[operator]} == operators


class KeepsAxis(TreeLstm):
    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + state["hidden"].sum(dim=1, keepdim=True)[:, 0, :5]}, after


def test_sum_with_keepdims_is_exported(tmp_path: Path) -> None:
    write_trees(KeepsAxis(0), tmp_path / "own", "own", 0)
    bundle = load_bundle(tmp_path / "own")
    tree = random_tree(3, 0, 30)
    expected = torch_scores(KeepsAxis(0).eval(), tree)
    np.testing.assert_allclose(graph_scores(bundle, tree), expected, atol=2e-6, rtol=1e-4)


class MeanOfChildren(TreeLstm):
    """Divides by the number of child slots instead of the number of children."""

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
    """Returns the children's states instead of its own."""

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        return super().step(inputs, constants, state)[0], state


class StartsElsewhere(TreeLstm):
    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {name: value + 1 for name, value in super().initial_state(rows).items()}


@pytest.mark.parametrize(
    ("module", "error_message"),
    [
        (MeanOfChildren(0), "a node's value changes with 1 empty positions after its children"),
        (AcrossRows(0), "does step\\(\\) compute anything across the row axis"),
        (FixedChildren(0), "the number of children is fixed to 4 at .*by_place"),
        (ManyStates(0), r"returns the state hidden as torch.float32 \(3, 4, 12\), but a node has torch.float32"),
        (StartsElsewhere(0), "hidden is not zero, but zeros stand for a missing child"),
    ],
)  # fmt: skip
def test_step_that_breaks_the_tree_contract_is_not_exported(
    module: nn.Module, error_message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=error_message):
        write_trees(module, tmp_path / "own", "own", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error_message"),
    [
        ({"inputs": {"token": Values([3])}}, "give one input, a Token"),
        ({"constants": {"image": Values([3])}}, "one token and no constants"),
        ({"source": Source(Token(WORDS), 9)}, "a tree has no source"),
        ({"outputs": {}}, "outputs: got none; a step has at least one output"),
        ({"outputs": {"logits": Labels(SENTIMENTS), "next": NextToken()}}, "no output can be NextToken"),
        ({"tree": Tree(children=-1, inner_id=0)}, "children: got -1; it must be 0, for any number, or more"),
        ({"tree": Tree(children=2, inner_id=40)}, "inner_id: got 40; the ids of the vocabulary are 0 to 39"),
        ({"quantize": "int8"}, "steps over trees are exported in their own precision only"),
    ],
)  # fmt: skip
def test_options_that_trees_do_not_support_are_rejected(
    changes: dict[str, Any], error_message: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "name": "own",
        "inputs": {"token": Token(WORDS)},
        "outputs": {"logits": Labels(SENTIMENTS)},
        "tree": Tree(children=2, inner_id=INNER),
    }
    with pytest.raises(ExportError, match=error_message):
        export_bundle(TreeLstm(2), tmp_path / "own", **(options | changes))
    assert list(tmp_path.iterdir()) == []
