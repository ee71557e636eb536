"""A network that reads a text in both directions before it classifies it (Schuster and Paliwal 1997).

Axes: B rows, T positions, V tokens, E embedding features, H hidden units of one direction, C classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from elman_training.cells import make_cell
from elman_training.cells.stack import at_last_step, reversed_rows, run_layer


class BidirectionalClassifier(nn.Module):
    """Whole texts in, one vector of logits for each out.

    The features of a text are the last output of each direction and the maximum of each output over the positions of
    the text (Conneau et al. 2017). They do not depend on the padding after the end of the text.

    Args:
        cell: the cell's name in `elman_training.cells.CELLS`.
        tokens: V.
        outputs: C.
        layers: the number of recurrent layers; each reads the outputs of both directions of the one before.
        embedding: E.
        hidden: H.
        dropout: the share of activations dropped between layers while training.
    """

    def __init__(
        self, *, cell: str, tokens: int, outputs: int, layers: int, embedding: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        sizes = [embedding, *[2 * hidden] * layers]
        self.forwards = nn.ModuleList([make_cell(cell, before, hidden) for before, _ in pairwise(sizes)])
        self.backwards = nn.ModuleList([make_cell(cell, before, hidden) for before, _ in pairwise(sizes)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * hidden, outputs)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary in a run."""
        return {"": self.embedding.weight}

    def features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The features of texts: padded token ids [B, T] and lengths [B] to [B, 4H]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        real = (positions < lengths[:, None]).unsqueeze(-1)  # [B, T, 1]
        outputs = self.embedding(tokens)
        for forward_layer, backward_layer in zip(self.forwards, self.backwards, strict=True):
            outputs = self.dropout(outputs)
            onward = run_layer(forward_layer, outputs)
            reverse = run_layer(backward_layer, reversed_rows(outputs, lengths))
            outputs = torch.cat([onward, reversed_rows(reverse, lengths)], dim=2)  # [B, T, 2H]
        largest = outputs.masked_fill(~real, -torch.inf).amax(dim=1)
        return torch.cat([at_last_step(onward, lengths), at_last_step(reverse, lengths), largest], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """[B, 4H] to [B, C]."""
        return cast(Tensor, self.head(self.dropout(features)))

    def last_logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Padded token ids [B, T] and lengths [B] to the logits of each text, [B, C]."""
        return self.logits(self.features(tokens, lengths))
