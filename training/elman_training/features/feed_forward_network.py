"""A feed-forward network from numbers to classes.

Axes: B rows, F features, H hidden units, C classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn


class FeedForwardNetwork(nn.Module):
    """Linear layers with rectifiers between them.

    The network itself scales its inputs to zero mean and unit variance, so its users pass the values as they are.

    Args:
        features: F.
        outputs: C.
        layers: the number of hidden layers.
        hidden: H.
        dropout: the share of hidden units dropped while training.
        input_noise: the standard deviation of the noise added to the scaled inputs while training (Bishop 1995).

    Attributes:
        mean: the mean of each input, [F].
        scale: the factor of each input after the mean is subtracted, [F].
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, *, features: int, outputs: int, layers: int, hidden: int, dropout: float, input_noise: float
    ) -> None:
        super().__init__()
        self.input_noise = input_noise
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        parts: list[nn.Module] = []
        for before, after in pairwise([features, *[hidden] * layers]):
            parts += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*parts, nn.Linear(hidden, outputs))

    def forward(self, values: Tensor) -> Tensor:
        """Numbers [B, F] to logits [B, C]."""
        scaled = (values - self.mean) * self.scale
        if self.training and self.input_noise:
            scaled = scaled + self.input_noise * torch.randn_like(scaled)
        return cast(Tensor, self.layers(scaled))
