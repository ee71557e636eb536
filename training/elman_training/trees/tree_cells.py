"""The cells that compute the state of a tree's node from the states of its children.

Axes: B nodes, C children, E embedding features, H hidden units, G gates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from elman_training.cells.cell import State


class TreeCell(nn.Module, ABC):
    """The computation at one node.

    As in a recurrent cell, a step has two halves: `project` computes the contribution of the node's token to the gates,
    which can be a lookup table, and `advance` does the rest. A missing child has zeros for its states, which change
    nothing.

    Args:
        inputs: E.
        hidden: H.

    Attributes:
        child_count: the number of children of every inner node; 0 for any number.
        gates: G.
        state_names: the states that a node passes to its parent.
        state_bounds: the largest magnitude of each bounded state.
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
        """The states of a missing child: zeros, [B, H] each."""
        return {name: self.input.weight.new_zeros(rows, self.hidden) for name in self.state_names}

    def project(self, inputs: Tensor) -> Tensor:
        """The contribution of the inputs to the gates, with biases: [..., E] -> [..., G*H]."""
        return cast(Tensor, self.input(inputs))

    @abstractmethod
    def advance(self, projected: Tensor, state: State) -> dict[str, Tensor]:
        """Compute the states of nodes.

        Args:
            projected: the result of `project`, [B, G*H].
            state: the states of the children, [B, C, H] by name.

        Returns:
            The nodes' own states, [B, H] by name.
        """


class ChildSumTreeLSTM(TreeCell):
    """The child-sum Tree-LSTM of Tai, Socher and Manning (2015), for any number of children in any order.

        h~ = h_1 + ... + h_C
        i = sigmoid(W_i x + U_i h~ + b_i), o and u likewise, u with tanh
        f_k = sigmoid(W_f x + U_f h_k + b_f)
        c = i u + f_1 c_1 + ... + f_C c_C
        h = o tanh(c)

    The gates are stored in the order i, o, u, f.
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
        gates = common + self.summed(state["hidden"].sum(dim=1))
        input_gate, output_gate, candidate = gates.chunk(3, dim=1)
        forget_gates = torch.sigmoid(of_forget.unsqueeze(1) + self.forget(state["hidden"]))  # [B, C, H]
        cell = torch.sigmoid(input_gate) * torch.tanh(candidate) + (forget_gates * state["cell"]).sum(dim=1)
        return {"hidden": torch.sigmoid(output_gate) * torch.tanh(cell), "cell": cell}


class BinaryTreeLSTM(TreeCell):
    """The N-ary Tree-LSTM of Tai, Socher and Manning (2015) for N = 2.

    Every gate, also the forget gate of each child, has weights of its own for the left and the right child.

        i = sigmoid(W_i x + U_i [h_left; h_right] + b_i), likewise f_left, f_right, o, and u with tanh
        c = i u + f_left c_left + f_right c_right
        h = o tanh(c)

    The paper's forget gates share W_f and b_f; here each has its own. The gates are stored in the order i, f_left,
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
        input_gate, forget_left, forget_right, output_gate, candidate = gates.chunk(5, dim=1)
        left, right = state["cell"].unbind(dim=1)
        cell = torch.sigmoid(input_gate) * torch.tanh(candidate)
        cell = cell + torch.sigmoid(forget_left) * left + torch.sigmoid(forget_right) * right
        return {"hidden": torch.sigmoid(output_gate) * torch.tanh(cell), "cell": cell}


class RecursiveCell(TreeCell):
    """The plain recursive network of Socher et al. (2013): h = tanh(W_x x + W [h_left; h_right] + b).

    An inner node reads one fixed token, so its x is constant and the equation is the paper's.
    """

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
