"""Cells in numpy, from the papers' equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_training.cells.cell import Cell

Array = NDArray[np.float64]


State = Mapping[str, Array]


@dataclass(frozen=True)
class Weights:
    """Weights of a cell in double precision: W [G*H, X], U [G*H, H], and their biases, [G*H]."""

    inputs: Array
    hidden: Array
    input_bias: Array
    hidden_bias: Array


def weights_of(cell: Cell) -> Weights:
    parts = (cell.input_weight, cell.hidden_weight, cell.input_bias, cell.hidden_bias)
    return Weights(*(part.detach().numpy().astype(np.float64) for part in parts))


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def gru_step(weights: Weights, inputs: Array, state: State) -> State:
    """Cho et al. 2014, with the reset gate after the product: n = tanh(W x + b + r (U h + c)), h' = (1 - z) n + z h."""
    of_inputs = np.split(inputs @ weights.inputs.T + weights.input_bias, 3, axis=1)
    of_hidden = np.split(state["hidden"] @ weights.hidden.T + weights.hidden_bias, 3, axis=1)
    reset, update = (sigmoid(of_inputs[gate] + of_hidden[gate]) for gate in (0, 1))
    candidate = np.tanh(of_inputs[2] + reset * of_hidden[2])
    return {"hidden": (1 - update) * candidate + update * state["hidden"]}
