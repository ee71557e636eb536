"""The gated recurrent unit. Axes as in `elman_training.cells.cell`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from elman_training.cells.cell import Cell, State


class GRU(Cell):
    """The gated recurrent unit (Cho et al. 2014).

    The reset gate is applied after the recurrent product, as in cuDNN and torch: n = tanh(W x + b + r * (U h + c)).
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
