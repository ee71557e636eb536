"""The network all three tasks share: an embedding, recurrent layers, a linear head.

Axes: B rows, T steps, V tokens, E embedding features, H hidden units, C outputs (tokens or labels).
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from elman_training.cells import CELLS, State
from elman_training.layers import Stacked, at_last_step, state_name, state_of_layer


class RecurrentNetwork(Stacked):
    """Tokens in, one vector of logits out at every step.

    Args:
        cell: "elman", "lstm" or "gru".
        tokens: V, the size of the input vocabulary.
        outputs: C, the number of logits.
        layers: how many recurrent layers.
        embedding: E.
        hidden: H.
        dropout: the share of activations dropped between layers, while training (Zaremba et al. 2014).
    """

    def __init__(
        self, *, cell: str, tokens: int, outputs: int, layers: int, embedding: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        sizes = [embedding, *[hidden] * layers]
        self.layers = nn.ModuleList([CELLS[cell](before, after) for before, after in pairwise(sizes)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, outputs)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary."""
        return {"": self.embedding.weight}

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """One step: token ids [B] and the state to logits [B, C] and the next state."""
        return self.step_from_projected(self.cells[0].project(self.embedding(tokens)), state)

    def step_from_projected(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """The step after the first layer's `project`: [B, G*H] and the state to logits [B, C] and the next state."""
        features, first = self.cells[0].advance(projected, state_of_layer(state, 0))
        features, others = self.step_layers(features, state, first=1)
        after = {**{state_name(0, name): value for name, value in first.items()}, **others}
        return self.head(self.dropout(features)), after

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Whole sequences: token ids [B, T] and the state to logits [B, T, C] and the last state."""
        features, after = self.features(tokens, state)
        return self.head(features), after

    def features(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward` without the head: what the last layer shows, [B, T, H]."""
        features, after = self.run_layers(self.embedding(tokens), state)
        return self.dropout(features), after

    def last_logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Padded token ids [B, T] to the logits at each row's last real step, [B, C]."""
        features, _ = self.features(tokens, self.initial_state(len(tokens)))
        return cast(Tensor, self.head(at_last_step(features, lengths)))


def detached(state: State) -> dict[str, Tensor]:
    """The same values without their history: where truncated back-propagation through time stops."""
    return {name: value.detach() for name, value in state.items()}


def parameter_count(network: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(parameter.numel() for parameter in network.parameters())
