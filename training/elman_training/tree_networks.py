"""Recursive networks: a cell that makes the state of a node from the states of its children, and a head that labels it.

Axes: B nodes, C children, E embedding features, H hidden units, G gates, N nodes of a batch of trees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from elman_training.cells import State
from elman_training.tree_batches import TreeBatch


class TreeCell(nn.Module, ABC):
    """What is computed at one node.

    As a recurrent cell's, a step has two halves: `project` turns what the node reads into its share of the gates, which
    for a token can be looked up, and `advance` does the rest. A child that is missing has zeros for its states, and
    these change nothing.

    Args:
        inputs: E.
        hidden: H.

    Attributes:
        child_count: how many children a node has that has any; 0 for any number.
        gates: G.
        state_names: what a node hands to its parent.
        state_bounds: the largest magnitude that a state can have, for those that have one.
        input: W and its bias, [G*H, E]; the gates have no other bias.
    """

    child_count: ClassVar[int]
    gates: ClassVar[int]
    state_names: ClassVar[tuple[str, ...]]
    state_bounds: ClassVar[Mapping[str, float]] = {"hidden": 1.0}

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = nn.Linear(inputs, self.gates * hidden)

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """Zeros, [B, H] each: the states of a child that is missing."""
        return {name: self.input.weight.new_zeros(rows, self.hidden) for name in self.state_names}

    def project(self, inputs: Tensor) -> Tensor:
        """The inputs' share of the gates, biases included: [..., E] -> [..., G*H]."""
        return cast(Tensor, self.input(inputs))

    @abstractmethod
    def advance(self, projected: Tensor, state: State) -> dict[str, Tensor]:
        """From projected inputs [B, G*H] and the children's states [B, C, H] to the node's own [B, H]."""


class ChildSumTreeLSTM(TreeCell):
    """The child-sum Tree-LSTM of Tai, Socher and Manning (2015): the children have no order and any number. Their
    hidden states are added up for all gates but the forget gates, of which each child has its own.

        s = h_1 + ... + h_C
        i = sigmoid(W_i x + U_i s + b_i), likewise o, and u with tanh
        f_k = sigmoid(W_f x + U_f h_k + b_f)
        c = i u + f_1 c_1 + ... + f_C c_C
        h = o tanh(c)

    The gates are kept in the order i, o, u, f.
    """

    child_count = 0
    gates = 4
    state_names = ("hidden", "cell")

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.summed = nn.Linear(hidden, 3 * hidden, bias=False)  # U_i, U_o, U_u
        self.forget = nn.Linear(hidden, hidden, bias=False)  # U_f
        nn.init.zeros_(self.input.bias)

    def advance(self, projected: Tensor, state: State) -> dict[str, Tensor]:
        common, of_forget = projected.split_with_sizes([3 * self.hidden, self.hidden], dim=1)
        entered, shown, candidate = (common + self.summed(state["hidden"].sum(dim=1))).chunk(3, dim=1)
        kept = torch.sigmoid(of_forget.unsqueeze(1) + self.forget(state["hidden"]))  # [B, C, H]
        cell = torch.sigmoid(entered) * torch.tanh(candidate) + (kept * state["cell"]).sum(dim=1)
        return {"hidden": torch.sigmoid(shown) * torch.tanh(cell), "cell": cell}


class BinaryTreeLSTM(TreeCell):
    """The N-ary Tree-LSTM of Tai, Socher and Manning (2015) for N = 2: every gate, the forget gates of both children
    too, has weights of its own for the left and the right child's hidden state.

        i = sigmoid(W_i x + U_i [h_left; h_right] + b_i), likewise f_left, f_right, o, and u with tanh
        c = i u + f_left c_left + f_right c_right
        h = o tanh(c)

    The paper's forget gates share W_f and b_f; here each has its own. The gates are kept in the order i, f_left,
    f_right, o, u.
    """

    child_count = 2
    gates = 5
    state_names = ("hidden", "cell")

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.pair = nn.Linear(2 * hidden, 5 * hidden, bias=False)
        nn.init.zeros_(self.input.bias)

    def advance(self, projected: Tensor, state: State) -> dict[str, Tensor]:
        gates = projected + self.pair(state["hidden"].flatten(1))
        entered, kept_left, kept_right, shown, candidate = gates.chunk(5, dim=1)
        left, right = state["cell"].unbind(dim=1)
        cell = torch.sigmoid(entered) * torch.tanh(candidate)
        cell = cell + torch.sigmoid(kept_left) * left + torch.sigmoid(kept_right) * right
        return {"hidden": torch.sigmoid(shown) * torch.tanh(cell), "cell": cell}


class RecursiveCell(TreeCell):
    """The plain recursive network of Socher et al. (2013): h = tanh(W_x x + W [h_left; h_right] + b). A node without a
    word reads a token like any other, so that x is a constant there and the equation is the paper's."""

    child_count = 2
    gates = 1
    state_names = ("hidden",)

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.pair = nn.Linear(2 * hidden, hidden, bias=False)
        with torch.no_grad():
            # At first a node is about the mean of its children, plus a little of everything.
            self.pair.weight.mul_(0.1).add_(0.5 * torch.eye(hidden).repeat(1, 2))

    def advance(self, projected: Tensor, state: State) -> dict[str, Tensor]:
        return {"hidden": torch.tanh(projected + self.pair(state["hidden"].flatten(1)))}


TREE_CELLS: Mapping[str, type[TreeCell]] = {
    "child-sum": ChildSumTreeLSTM,
    "binary": BinaryTreeLSTM,
    "recursive": RecursiveCell,
}


class TreeNetwork(nn.Module):
    """Trees in, one vector of logits out at every node.

    Args:
        cell: "child-sum", "binary" or "recursive".
        tokens: the size of the vocabulary.
        outputs: the number of labels.
        embedding: E.
        hidden: H.
        dropout: the share of embedding features dropped, and of activations before the head, while training.
    """

    def __init__(
        self,
        *,
        cell: str,
        tokens: int,
        outputs: int,
        embedding: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        self.cell = TREE_CELLS[cell](embedding, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, outputs)

    @property
    def state_bounds(self) -> dict[str, float]:
        """The largest magnitude of the states that have one."""
        return dict(self.cell.state_bounds)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary."""
        return {"": self.embedding.weight}

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """The states of a child that is missing: zeros, [B, H] each."""
        return self.cell.initial_state(rows)

    def step(self, inputs: State, constants: State, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One node a row: {"token": [B]} and the children's states [B, C, H] to {"logits": [B, labels]} and the nodes'
        own states [B, H]."""
        return self.step_from_projected(self.cell.project(self.embedding(inputs["token"])), state)

    def step_from_projected(self, projected: Tensor, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The step after the cell's `project`."""
        after = self.cell.advance(projected, state)
        return {"logits": self.head(after["hidden"])}, after

    def forward(self, batch: TreeBatch) -> Tensor:
        """The logits at every node of a batch, [N, labels], in the batch's order."""
        projected = self.cell.project(self.dropout(self.embedding(batch.tokens)))
        known = self.initial_state(1)  # Row 0 is the missing child, and node k has row k + 1.
        # Split once: the gradients of as many slices would each be as large as the whole.
        by_level = projected.split_with_sizes([len(children) for children in batch.levels])
        for of_level, children in zip(by_level, batch.levels, strict=True):
            after = self.cell.advance(of_level, {name: value[children] for name, value in known.items()})
            known = {name: torch.cat([value, after[name]]) for name, value in known.items()}
        return cast(Tensor, self.head(self.dropout(known["hidden"][1:])))
