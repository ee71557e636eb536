"""Stacks of recurrent layers: their states by name, one step of them, and whole texts in either direction.

Axes: B rows, T positions, X features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from elman_training.cells.cell import Cell, State


class CellStack(nn.Module):
    """A network with recurrent layers on top of each other.

    Attributes:
        layers: the cells, the first layer first; a subclass sets them.
        dropout: applied before each layer; a subclass sets it.
    """

    layers: nn.ModuleList
    dropout: nn.Dropout

    @property
    def cells(self) -> list[Cell]:
        """The recurrent layers, the first layer first."""
        return [cast(Cell, layer) for layer in self.layers]

    @property
    def state_bounds(self) -> dict[str, float]:
        """The largest magnitude of each bounded state, named as in `initial_state`."""
        return {
            state_name(index, name): bound
            for index, layer in enumerate(self.cells)
            for name, bound in layer.state_bounds.items()
        }

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """The state that every sequence starts from: zeros, [B, H] each, named "layer0.hidden" and so on."""
        return {
            state_name(index, name): value
            for index, layer in enumerate(self.cells)
            for name, value in layer.initial_state(rows).items()
        }

    def step_layers(self, features: Tensor, state: State, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute one step of the layers from `first` on.

        Args:
            features: [B, X].
            state: [B, H] by name.
            first: the index of the first layer to compute.

        Returns:
            The output of the last layer, [B, H], and the next states of these layers.
        """
        after: dict[str, Tensor] = {}
        for index, layer in enumerate(self.cells[first:], start=first):
            features, layer_state = layer.step(self.dropout(features), state_of_layer(state, index))
            after.update({state_name(index, name): value for name, value in layer_state.items()})
        return features, after

    def run_layers(self, features: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Run whole sequences.

        Args:
            features: [B, T, X].
            state: [B, H] by name.

        Returns:
            The outputs of the last layer, [B, T, H], and the last state.
        """
        after: dict[str, Tensor] = {}
        for index, layer in enumerate(self.cells):
            features, layer_state = layer(self.dropout(features), state_of_layer(state, index))
            after.update({state_name(index, name): value for name, value in layer_state.items()})
        return features, after


def state_name(index: int, name: str) -> str:
    """The name that the network gives to a state of one of its layers."""
    return f"layer{index}.{name}"


def state_of_layer(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The states of one layer under the layer's own names."""
    prefix = state_name(index, "")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def detached(state: State) -> dict[str, Tensor]:
    """The same values without their gradients' history: where truncated back-propagation through time stops."""
    return {name: value.detach() for name, value in state.items()}


def at_last_step(features: Tensor, lengths: Tensor) -> Tensor:
    """The features at each row's last real step: padded [B, T, H] and lengths [B] to [B, H]."""
    return features[torch.arange(features.shape[0]), lengths - 1]


def run_layer(layer: nn.Module, features: Tensor) -> Tensor:
    """The outputs of a cell that starts from its initial state: [B, T, X] to [B, T, H]."""
    cell = cast(Cell, layer)
    # Not len(), which would fix the number of rows in an exported graph.
    outputs, _ = cell(features, cell.initial_state(features.shape[0]))
    return cast(Tensor, outputs)


def reversed_rows(features: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each row within its own length, so that padding still comes last.

    Applied twice, it gives the row again, except in the padding.

    Args:
        features: padded, [B, T, X].
        lengths: the real positions of each row, int64 [B].
    """
    positions = lengths[:, None] - 1 - torch.arange(features.shape[1], device=features.device)  # [B, T]
    return features.gather(1, positions.clamp(min=0)[..., None].expand(-1, -1, features.shape[2]))
