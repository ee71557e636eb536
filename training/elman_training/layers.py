"""Stacks of recurrent layers: their states by name, one step of them, and whole texts read in both directions.

Axes: B rows, T positions, X features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from elman_training.cells import Cell, State


class Stacked(nn.Module):
    """A network with recurrent layers one upon another.

    Attributes:
        layers: cells, the first one first; a subclass sets them.
        dropout: what stands before each layer; a subclass sets it.
    """

    layers: nn.ModuleList
    dropout: nn.Dropout

    @property
    def cells(self) -> list[Cell]:
        """The recurrent layers, the first one first."""
        return [cast(Cell, layer) for layer in self.layers]

    @property
    def state_bounds(self) -> dict[str, float]:
        """The largest magnitude of the states that have one, named as in `initial_state`."""
        return {
            state_name(index, name): bound
            for index, layer in enumerate(self.cells)
            for name, bound in layer.state_bounds.items()
        }

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """What every sequence starts from: zeros, [B, H] each, named "layer0.hidden" and so on."""
        return {
            state_name(index, name): value
            for index, layer in enumerate(self.cells)
            for name, value in layer.initial_state(rows).items()
        }

    def step_layers(self, features: Tensor, state: State, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the layers from `first` on: features [B, X] and the state to what the last layer shows, [B, H],
        and the next states of these layers."""
        after: dict[str, Tensor] = {}
        for index, layer in enumerate(self.cells[first:], start=first):
            features, layer_state = layer.step(self.dropout(features), state_of_layer(state, index))
            after.update({state_name(index, name): value for name, value in layer_state.items()})
        return features, after

    def run_layers(self, features: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Whole sequences: features [B, T, X] and the state to what the last layer shows, [B, T, H], and the last
        state."""
        after: dict[str, Tensor] = {}
        for index, layer in enumerate(self.cells):
            features, layer_state = layer(self.dropout(features), state_of_layer(state, index))
            after.update({state_name(index, name): value for name, value in layer_state.items()})
        return features, after


def state_name(index: int, name: str) -> str:
    """What the network calls a state of one of its layers."""
    return f"layer{index}.{name}"


def state_of_layer(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Of a network's states, those of one layer by its own names for them."""
    prefix = state_name(index, "")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def at_last_step(features: Tensor, lengths: Tensor) -> Tensor:
    """Of padded [B, T, H], what stands at each row's last real step: [B, H]."""
    return features[torch.arange(features.shape[0]), lengths - 1]


def run_layer(layer: nn.Module, features: Tensor) -> Tensor:
    """What a cell shows over [B, T, X] from its initial state: [B, T, H]."""
    cell = cast(Cell, layer)
    # Not len(), which would fix the number of rows in an exported graph.
    shown, _ = cell(features, cell.initial_state(features.shape[0]))
    return cast(Tensor, shown)


def reversed_rows(features: Tensor, lengths: Tensor) -> Tensor:
    """Padded [B, T, X] with each row in reverse within its own length, so that padding still comes last; applied twice
    it is the row again, except in the padding."""
    places = lengths[:, None] - 1 - torch.arange(features.shape[1], device=features.device)  # [B, T]
    return features.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, features.shape[2]))
