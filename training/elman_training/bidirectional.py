"""A network that reads a text in both directions before it says what it is (Schuster and Paliwal 1997).

Axes: B rows, T positions, V tokens, E embedding features, H hidden units of one direction, C classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from elman_training.cells import CELLS
from elman_training.layers import at_last_step, reversed_rows, run_layer


class BidirectionalClassifier(nn.Module):
    """Whole texts in, one vector of logits for each.

    What is shown of a text is what each direction holds at its end, and the largest value of each feature at any of the
    text's positions (Conneau et al. 2017). Nothing of it depends on what stands behind the text's end.

    Args:
        cell: "elman", "lstm" or "gru".
        tokens: V.
        outputs: C.
        layers: how many recurrent layers; each reads what both directions of the one before show.
        embedding: E.
        hidden: H.
        dropout: the share of activations dropped between layers, while training.
    """

    def __init__(
        self, *, cell: str, tokens: int, outputs: int, layers: int, embedding: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        sizes = [embedding, *[2 * hidden] * layers]
        self.forwards = nn.ModuleList([CELLS[cell](before, hidden) for before, _ in pairwise(sizes)])
        self.backwards = nn.ModuleList([CELLS[cell](before, hidden) for before, _ in pairwise(sizes)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * hidden, outputs)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary."""
        return {"": self.embedding.weight}

    def features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """What is shown of texts: padded token ids [B, T] and how many of each row are real [B], to [B, 4H]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        real = (places < lengths[:, None]).unsqueeze(-1)  # [B, T, 1]
        shown = self.embedding(tokens)
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            shown = self.dropout(shown)
            onward = run_layer(ahead, shown)
            reverse = run_layer(back, reversed_rows(shown, lengths))
            shown = torch.cat([onward, reversed_rows(reverse, lengths)], dim=2)  # [B, T, 2H]
        largest = shown.masked_fill(~real, -torch.inf).amax(dim=1)
        return torch.cat([at_last_step(onward, lengths), at_last_step(reverse, lengths), largest], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """[B, 4H] to [B, C]."""
        return cast(Tensor, self.head(self.dropout(features)))

    def last_logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Padded token ids [B, T] to the logits of each row's text, [B, C]."""
        return self.logits(self.features(tokens, lengths))
