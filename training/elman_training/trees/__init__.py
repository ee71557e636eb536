"""Trees with a label at every node, and the tree cells by name.

To add a cell, write a subclass of `elman_training.trees.tree_cells.TreeCell` and register it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from elman_training.trees.tree_cells import TreeCell

# Paths and not classes, so that configurations can be read without torch.
TREE_CELLS: Mapping[str, str] = {
    "child-sum": "elman_training.trees.tree_cells:ChildSumTreeLSTM",
    "binary": "elman_training.trees.tree_cells:BinaryTreeLSTM",
    "recursive": "elman_training.trees.tree_cells:RecursiveCell",
}

# The type of a configuration's field that names a tree cell.
if TYPE_CHECKING:
    TreeCellName = str
else:
    TreeCellName = Literal[tuple(TREE_CELLS)]


def tree_cell_class(name: str) -> type[TreeCell]:
    """The class of the cell that is registered under a name."""
    found: type[TreeCell] = resolve_name(TREE_CELLS[name])
    return found
