"""The network of language models, taggers and classifiers: an embedding, recurrent layers, a linear head.

Axes: B rows, T steps, V tokens, E embedding features, H hidden units, C outputs (tokens or labels).
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from elman_training.cells import make_cell
from elman_training.cells.cell import State
from elman_training.cells.stack import CellStack, at_last_step, state_name, state_of_layer


class RecurrentNetwork(CellStack):
    """Tokens in, one vector of logits out at every step.

    Args:
        cell: the cell's name in `elman_training.cells.CELLS`.
        tokens: V, the size of the input vocabulary.
        outputs: C, the number of logits.
        layers: the number of recurrent layers.
        embedding: E.
        hidden: H.
        dropout: the share of activations dropped between layers while training (Zaremba et al. 2014).
    """

    def __init__(
        self, *, cell: str, tokens: int, outputs: int, layers: int, embedding: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        sizes = [embedding, *[hidden] * layers]
        self.layers = nn.ModuleList([make_cell(cell, before, after) for before, after in pairwise(sizes)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, outputs)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary in a run."""
        return {"": self.embedding.weight}

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute one step: token ids [B] and the state to logits [B, C] and the next state."""
        return self.step_from_projected(self.cells[0].project(self.embedding(tokens)), state)

    def step_from_projected(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the step after the first layer's `project`: [B, G*H] and the state to logits [B, C] and the next
        state."""
        features, first = self.cells[0].advance(projected, state_of_layer(state, 0))
        features, others = self.step_layers(features, state, first=1)
        after = {**{state_name(0, name): value for name, value in first.items()}, **others}
        return self.head(self.dropout(features)), after

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Run whole sequences: token ids [B, T] and the state to logits [B, T, C] and the last state."""
        features, after = self.features(tokens, state)
        return self.head(features), after

    def features(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward` without the head: the outputs of the last layer, [B, T, H], and the last state."""
        features, after = self.run_layers(self.embedding(tokens), state)
        return self.dropout(features), after

    def last_logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Padded token ids [B, T] and lengths [B] to the logits at each row's last real step, [B, C]."""
        features, _ = self.features(tokens, self.initial_state(len(tokens)))
        return cast(Tensor, self.head(at_last_step(features, lengths)))
