"""The simple recurrent network. Axes as in `elman_training.cells.cell`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elman_training.cells.cell import AdditiveCell, State


class Elman(AdditiveCell):
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
