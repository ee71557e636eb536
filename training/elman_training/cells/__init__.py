"""The recurrent cells by name.

To add a cell, write a subclass of `elman_training.cells.cell.Cell` in a file of its own and register it here. Networks,
configurations, the command line and the export take it from this table; the server knows no cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from elman_training.cells.cell import Cell

# Paths and not classes, so that configurations can be read without torch.
CELLS: Mapping[str, str] = {
    "elman": "elman_training.cells.elman:Elman",
    "lstm": "elman_training.cells.lstm:LSTM",
    "gru": "elman_training.cells.gru:GRU",
}

# The type of a configuration's field that names a cell.
if TYPE_CHECKING:
    CellName = str
else:
    CellName = Literal[tuple(CELLS)]


def make_cell(name: str, inputs: int, hidden: int) -> Cell:
    """Make an untrained cell.

    Args:
        name: the cell's name in `CELLS`.
        inputs: X, the number of input features.
        hidden: H, the number of hidden units.
    """
    cell: Cell = resolve_name(CELLS[name])(inputs, hidden)
    return cell
