"""Trees as arrays of nodes, so that what happens to nodes is done for those of all trees in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import NO_CHILD
from elman_server.scheduling.trees.tree import Tree

# Nodes are numbered level by level from the root on, so the children of a node are adjacent, and so is a level.
NODE = np.dtype(
    [
        ("token", np.int64),
        ("first_child", np.int64),
        ("child_count", np.int64),
        ("place", np.int64),  # where its state is kept, until its parent has been computed
        # Not of the node itself, but of the nodes that are to be run: the first record is about the first of them.
        ("todo", np.int64),
        ("level_start", np.int64),  # where the nodes of the same level begin
    ]
)


@dataclass(frozen=True)
class FlatTrees:
    """Trees, the nodes of one after those of the other.

    Attributes:
        nodes: NODE [nodes].
        starts: int64 [trees], where the nodes of each begin.
        stops: int64 [trees], where they end.
        counts: int64 [trees], how many of them are to be run.
    """

    nodes: NDArray[Any]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    counts: NDArray[np.int64]


def flatten(trees: Sequence[Tree], start: int, known: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> FlatTrees:
    """Flatten trees whose nodes begin at `start` among others.

    Args:
        trees: one or more.
        start: the number of the first node.
        known: returns where the states of nodes without children are kept, by their tokens; NO_CHILD where they are not
            known. Such nodes are not run, except a root, and in a tree in which every node is labelled.
    """
    sizes = np.array([len(tree.forced) for tree in trees])
    stops = start + np.cumsum(sizes)
    starts = stops - sizes
    tree_of = np.repeat(np.arange(len(trees)), sizes)
    child_counts = np.concatenate([tree.child_counts for tree in trees])
    nodes = np.zeros(len(tree_of), NODE)
    nodes["token"] = tokens = np.concatenate([tree.forced for tree in trees])
    # A root is not a child: each tree has one node more than it has children.
    nodes["first_child"] = np.cumsum(child_counts) - child_counts + tree_of + (start + 1)
    nodes["child_count"] = child_counts
    skipped = child_counts == 0
    skipped[starts - start] = False
    if any(tree.order is not None for tree in trees):
        skipped &= np.repeat([tree.order is None for tree in trees], sizes)
    places = np.where(skipped, known(tokens), NO_CHILD)
    nodes["place"] = places
    todo = np.flatnonzero(places == NO_CHILD)
    counts = np.bincount(tree_of[todo], minlength=len(trees))
    # The nodes to be run of each tree are listed in the records from its beginning on.
    listed = np.arange(len(todo)) + np.repeat(starts - start - np.cumsum(counts) + counts, counts)
    nodes["todo"][listed] = todo + start
    depths = np.concatenate([tree.depths for tree in trees])[todo]
    first = np.ones(len(todo), np.bool_)  # of its level
    first[1:] = (depths[1:] != depths[:-1]) | (tree_of[todo[1:]] != tree_of[todo[:-1]])
    nodes["level_start"][listed] = listed[np.maximum.accumulate(np.where(first, np.arange(len(todo)), 0))] + start
    return FlatTrees(nodes, starts, stops, counts)
