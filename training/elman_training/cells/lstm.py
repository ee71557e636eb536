"""Long short-term memory. Axes as in `elman_training.cells.cell`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elman_training.cells.cell import AdditiveCell, State


class LSTM(AdditiveCell):
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
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=1)
        cell = torch.sigmoid(forget_gate) * state["cell"] + torch.sigmoid(input_gate) * torch.tanh(candidate)
        hidden = torch.sigmoid(output_gate) * torch.tanh(cell)
        return hidden, {"hidden": hidden, "cell": cell}

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        initial = (state["hidden"].unsqueeze(0), state["cell"].unsqueeze(0))
        outputs, (hidden, cell) = self.fused(inputs, initial)
        return outputs, {"hidden": hidden.squeeze(0), "cell": cell.squeeze(0)}
