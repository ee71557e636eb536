"""What every recurrent cell has: one `step`, a whole-sequence `forward` that computes the same faster, and a state.

The state is a mapping from name to tensor. It is an argument and a result, never hidden in the module.

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

    A step has two halves: `project` computes the contribution of the input to the gates, and `advance` does the rest.
    The first half does not depend on the state, so for tokens it can be a lookup table.

    Args:
        hidden: H, the number of hidden units.
        fused: torch's own layer, which holds the weights and runs whole sequences.

    Attributes:
        state_names: the states that the cell carries from step to step.
        state_bounds: the largest magnitude of each bounded state. It follows from the cell's equations, so code that
            stores or quantizes a state may rely on it.
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
        """The bias that belongs to W, [G*H]."""
        return cast(Tensor, self.fused.bias_ih_l0)

    @property
    def hidden_bias(self) -> Tensor:
        """The bias that belongs to U, [G*H]."""
        return cast(Tensor, self.fused.bias_hh_l0)

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """Zeros, [B, H] each."""
        return {name: self.hidden_weight.new_zeros(rows, self.hidden) for name in self.state_names}

    def project(self, inputs: Tensor) -> Tensor:
        """The contribution of the inputs to the gates, with biases: [..., X] -> [..., G*H]."""
        return functional.linear(inputs, self.input_weight, self.input_bias)

    @abstractmethod
    def advance(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute one step from projected inputs.

        Args:
            projected: the result of `project`, [B, G*H].
            state: [B, H] by name.

        Returns:
            The output, [B, H], and the next state.
        """

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute one step.

        Args:
            inputs: [B, X].
            state: [B, H] by name.

        Returns:
            The output, [B, H], and the next state.
        """
        return self.advance(self.project(inputs), state)

    @abstractmethod
    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Run whole sequences.

        Args:
            inputs: [B, T, X].
            state: [B, H] by name.

        Returns:
            The outputs, [B, T, H], and the last state.
        """


class AdditiveCell(Cell):
    """A cell that only adds the contributions of input and state to its gates.

    One matrix product then gives the sum: [W U] [x; h] + b. A step with one product is faster than one with two, most
    of all in int8.
    """

    def project(self, inputs: Tensor) -> Tensor:
        # Both biases are only ever added, so the first half of the step can add both.
        return functional.linear(inputs, self.input_weight, self.input_bias + self.hidden_bias)

    def advance(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        return self.activate(projected + functional.linear(state["hidden"], self.hidden_weight), state)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        # In an exported graph the joined weight is a constant; torch joins it at every step.
        weight = torch.cat([self.input_weight, self.hidden_weight], dim=1)  # [G*H, X + H]
        joined = torch.cat([inputs, state["hidden"]], dim=1)  # [B, X + H]
        return self.activate(functional.linear(joined, weight, self.input_bias + self.hidden_bias), state)

    @abstractmethod
    def activate(self, gates: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute one step from the gates before their nonlinearities.

        Args:
            gates: [B, G*H].
            state: [B, H] by name.

        Returns:
            The output, [B, H], and the next state.
        """
