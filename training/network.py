"""The network all three tasks share: an embedding, recurrent layers, a linear head.

Axes: B rows, T steps, V tokens, E embedding features, H hidden units, C outputs (tokens or labels).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from training.cells import CELLS, Cell, State


class RecurrentNetwork(nn.Module):
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
    def cells(self) -> list[Cell]:
        """The recurrent layers, the first one first."""
        return [cast(Cell, layer) for layer in self.layers]

    @property
    def state_bounds(self) -> dict[str, float]:
        """The largest magnitude of the states that have one, named as in `initial_state`."""
        return {
            f"layer{index}.{name}": bound
            for index, layer in enumerate(self.cells)
            for name, bound in layer.state_bounds.items()
        }

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary."""
        return {"": self.embedding.weight}

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """What every sequence starts from; [B, H] each, named "layer0.hidden" and so on."""
        return {
            f"layer{index}.{name}": value
            for index, layer in enumerate(self.cells)
            for name, value in layer.initial_state(rows).items()
        }

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """One step: token ids [B] and the state to logits [B, C] and the next state."""
        return self.step_from_projected(self.cells[0].project(self.embedding(tokens)), state)

    def step_from_projected(self, projected: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """The step after the first layer's `project`: [B, G*H] and the state to logits [B, C] and the next state."""
        after: dict[str, Tensor] = {}
        features, layer_state = self.cells[0].advance(projected, state_of_layer(state, 0))
        after.update({f"layer0.{name}": value for name, value in layer_state.items()})
        for index, layer in enumerate(self.cells[1:], start=1):
            features, layer_state = layer.step(self.dropout(features), state_of_layer(state, index))
            after.update({f"layer{index}.{name}": value for name, value in layer_state.items()})
        return self.head(self.dropout(features)), after

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Whole sequences: token ids [B, T] and the state to logits [B, T, C] and the last state."""
        features, after = self.features(tokens, state)
        return self.head(features), after

    def features(self, tokens: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward` without the head: what the last layer shows, [B, T, H]."""
        after: dict[str, Tensor] = {}
        features = self.embedding(tokens)
        for index, layer in enumerate(self.cells):
            features, layer_state = layer(self.dropout(features), state_of_layer(state, index))
            after.update({f"layer{index}.{name}": value for name, value in layer_state.items()})
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


def state_of_layer(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Of states named "layer0.hidden" and so on, those of one layer by its own names for them."""
    prefix = f"layer{index}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def at_last_step(features: Tensor, lengths: Tensor) -> Tensor:
    """Of padded [B, T, H], what stands at each row's last real step: [B, H]."""
    return features[torch.arange(features.shape[0]), lengths - 1]
