"""Attention over the positions of a source.

Axes: B rows, S source positions, T target positions, H hidden units, A units of attention.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_FAR_BELOW = 1e9  # subtracted from the scores of padding, so that they are below all others


class Attention(nn.Module):
    """Additive or multiplicative attention.

    The score of a position is v . tanh(W query + U memory) (additive: Bahdanau et al. 2015) or
    W query . U memory / sqrt(A) (multiplicative: Luong et al. 2015; Vaswani et al. 2017).

    Args:
        hidden: H, of the query and of the memory.
        units: A, the dimension in which both are compared.
        additive: whether the score is additive.
    """

    def __init__(self, hidden: int, units: int, *, additive: bool) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, units, bias=False)
        self.key = nn.Linear(hidden, units)
        self.score = nn.Linear(units, 1, bias=False) if additive else None

    def constants(self, memory: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Compute what stays constant while a target is decoded.

        Args:
            memory: the outputs of the encoder, [B, S, H].
            lengths: of the sources, int64 [B].

        Returns:
            "memory" [B, S, H], "keys" [B, S, A] and "mask" [B, S], which is 1 at real positions. All are 0 after the
            end of a source.
        """
        mask = (torch.arange(memory.shape[1]) < lengths[:, None]).to(memory.dtype)
        return {"memory": memory * mask[..., None], "keys": self.key(memory) * mask[..., None], "mask": mask}

    def forward(self, outputs: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Read the memory.

        Positions after the end have a weight of exactly 0. A softmax over S would give them a small one, so the weights
        are masked exponentials, and the context is divided by their sum.

        Args:
            outputs: of the decoder, [B, T, H].
            constants: the result of `constants`.

        Returns:
            The context at each target position, [B, T, H].
        """
        mask = constants["mask"][:, None]  # [B, 1, S]
        query, keys = self.query(outputs), constants["keys"]  # [B, T, A], [B, S, A]
        if self.score is not None:
            score = self.score(torch.tanh(query[:, :, None] + keys[:, None]))[..., 0].float()  # [B, T, S]
        else:
            score = (query @ keys.transpose(1, 2)).float() * keys.shape[-1] ** -0.5
        score = score + (mask - 1) * _FAR_BELOW
        weights = torch.exp(score - score.amax(-1, keepdim=True)) * mask
        return (weights @ constants["memory"]) / (weights @ mask.transpose(1, 2))
