"""The recurrent cells: Elman, LSTM and GRU.

Each has one `step`, one whole-sequence `forward` that computes the same thing faster, and an explicit initial state.
The state is a mapping from name to tensor: an argument and a result, never hidden in the module.

Axes: B rows (sequences), T steps, X input features, H hidden units, G gates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

State = Mapping[str, Tensor]


class Cell(nn.Module, ABC):
    """One recurrent layer.

    A step has two halves, so that the first can be computed ahead (for a token: looked up in a table):
    `project` turns the input into its share of the gates, `advance` does the rest.

    Args:
        hidden: H, the number of hidden units.
        fused: torch's own layer, which holds the weights and runs whole sequences.

    Attributes:
        state_names: what it carries from step to step.
        state_bounds: the largest magnitude that a state can have, for those that have one: a fact about the cell's
            equations, which whoever stores or quantizes a state may rely on.
    """

    state_names: ClassVar[tuple[str, ...]]
    state_bounds: ClassVar[Mapping[str, float]] = {"hidden": 1.0}
    fused: nn.RNNBase

    def __init__(self, hidden: int, fused: nn.RNNBase) -> None:
        super().__init__()
        self.hidden = hidden
        self.fused = fused

    @property
    def input_weight(self) -> Tensor:
        """W, [G*H, X]."""
        return cast(Tensor, self.fused.weight_ih_l0)

    @property
    def hidden_weight(self) -> Tensor:
        """U, [G*H, H]."""
        return cast(Tensor, self.fused.weight_hh_l0)

    @property
    def input_bias(self) -> Tensor:
        """The bias beside W, [G*H]."""
        return cast(Tensor, self.fused.bias_ih_l0)

    @property
    def hidden_bias(self) -> Tensor:
        """The bias beside U, [G*H]."""
        return cast(Tensor, self.fused.bias_hh_l0)

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """Zeros, [B, H] each."""
        return {name: self.hidden_weight.new_zeros(rows, self.hidden) for name in self.state_names}

    def project(self, inputs: Tensor) -> Tensor:
        """The inputs' share of the gates, biases included: [..., X] -> [..., G*H]."""
        return functional.linear(inputs, self.input_weight, self.input_bias)

    @abstractmethod
    def advance(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """One step from projected inputs: [B, G*H] and the state to the output [B, H] and the next state."""

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """One step: inputs [B, X] and the state to the output [B, H] and the next state."""
        return self.advance(self.project(inputs), state)

    @abstractmethod
    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """A whole sequence: inputs [B, T, X] and the state to the outputs [B, T, H] and the last state."""


class Additive(Cell):
    """A cell that only ever adds the two shares of its gates, so that one product over input and state side by side
    gives the sum: [W U] [x; h] + b. A step is faster for it than with two products, most of all in int8.
    """

    def project(self, inputs: Tensor) -> Tensor:
        # Both biases are only ever added, so the first half of the step takes both.
        return functional.linear(inputs, self.input_weight, self.input_bias + self.hidden_bias)

    def advance(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        return self.activate(projected + functional.linear(state["hidden"], self.hidden_weight), state)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        # The weights are joined at every step, but only here: in an exported graph they are a constant.
        weight = torch.cat([self.input_weight, self.hidden_weight], dim=1)  # [G*H, X + H]
        joined = torch.cat([inputs, state["hidden"]], dim=1)  # [B, X + H]
        return self.activate(functional.linear(joined, weight, self.input_bias + self.hidden_bias), state)

    @abstractmethod
    def activate(self, gates: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """One step from the gates before their nonlinearities: [B, G*H] and the state to the output [B, H] and the
        next state."""


class Elman(Additive):
    """The simple recurrent network of Elman (1990): h' = tanh(W x + U h + b)."""

    state_names = ("hidden",)

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(hidden, nn.RNN(inputs, hidden, batch_first=True))
        nn.init.orthogonal_(self.hidden_weight)

    def activate(self, gates: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = torch.tanh(gates)
        return hidden, {"hidden": hidden}

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, hidden = self.fused(inputs, state["hidden"].unsqueeze(0))
        return outputs, {"hidden": hidden.squeeze(0)}


class LSTM(Additive):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate (Gers et al. 2000).

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015).
    """

    state_names = ("hidden", "cell")

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(hidden, nn.LSTM(inputs, hidden, batch_first=True))
        with torch.no_grad():
            self.input_bias[hidden : 2 * hidden].fill_(1.0)
            self.hidden_bias.zero_()

    def activate(self, gates: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        entered, kept, candidate, shown = gates.chunk(4, dim=1)
        cell = torch.sigmoid(kept) * state["cell"] + torch.sigmoid(entered) * torch.tanh(candidate)
        hidden = torch.sigmoid(shown) * torch.tanh(cell)
        return hidden, {"hidden": hidden, "cell": cell}

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        before = (state["hidden"].unsqueeze(0), state["cell"].unsqueeze(0))
        outputs, (hidden, cell) = self.fused(inputs, before)
        return outputs, {"hidden": hidden.squeeze(0), "cell": cell.squeeze(0)}


class GRU(Cell):
    """The gated recurrent unit (Cho et al. 2014), with the reset gate applied after the recurrent product, as cuDNN
    and torch do: n = tanh(W x + b + r * (U h + c)).
    """

    state_names = ("hidden",)

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(hidden, nn.GRU(inputs, hidden, batch_first=True))

    def advance(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        recurrent = functional.linear(state["hidden"], self.hidden_weight, self.hidden_bias)
        reset_x, update_x, candidate_x = projected.chunk(3, dim=1)
        reset_h, update_h, candidate_h = recurrent.chunk(3, dim=1)
        update = torch.sigmoid(update_x + update_h)
        candidate = torch.tanh(candidate_x + torch.sigmoid(reset_x + reset_h) * candidate_h)
        hidden = candidate + update * (state["hidden"] - candidate)
        return hidden, {"hidden": hidden}

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, hidden = self.fused(inputs, state["hidden"].unsqueeze(0))
        return outputs, {"hidden": hidden.squeeze(0)}


CELLS: Mapping[str, type[Elman] | type[LSTM] | type[GRU]] = {"elman": Elman, "lstm": LSTM, "gru": GRU}
