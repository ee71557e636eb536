"""A tree: what one caller wants of a model whose steps are taken at the nodes of trees."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import NO_CHILD
from elman_server.scheduling.sequence import ReadingFinished, Sequence

# What there is to know of a node. Nodes are told by their numbers, counted level by level from the root on: so the
# children of a node are next to each other, and those of a level.
NODE = np.dtype(
    [
        ("token", np.int64),
        ("first_child", np.int64),
        ("child_count", np.int64),
        ("place", np.int64),  # where its state is kept, until its parent has been computed
        # Not of the node itself, but of the nodes that are to be run: the first record tells the first of them.
        ("todo", np.int64),
        ("level_start", np.int64),  # where those of the same level begin
    ]
)


@dataclass(eq=False)
class Tree(Sequence):
    """A tree to be labelled, at its root or at every node. Its `forced` are the tokens of its nodes.

    Attributes:
        depths: int64 [nodes], how far each is from the root; ascending.
        child_counts: int64 [nodes], how many children each has; those of the first node come first, and so on.
        order: int64 [nodes], the place in the answer of each; None: only the root is asked for.
        outputs: what has been shown of the nodes so far, in the order of the answer.
    """

    depths: NDArray[np.int64] = field(kw_only=True)
    child_counts: NDArray[np.int64] = field(kw_only=True)
    order: NDArray[np.int64] | None = field(default=None, kw_only=True)
    outputs: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0), np.float32), init=False)

    def show(self, outputs: NDArray[Any], start: int) -> None:
        """Take what some nodes show, [nodes, labels], from `start` on; if only the root is asked for, it is the last
        to come."""
        if self.order is None:
            self.outputs = outputs[:1].copy()
            return
        if not len(self.outputs):
            self.outputs = np.empty((len(self.forced), *outputs.shape[1:]), outputs.dtype)
        self.outputs[self.order[start : start + len(outputs)]] = outputs

    def finished(self) -> ReadingFinished:
        return ReadingFinished(self.outputs, None, np.empty(0, np.float32), {})


@dataclass(frozen=True)
class Grove:
    """Trees side by side, the nodes of one behind those of the other.

    Attributes:
        nodes: their records, NODE [nodes].
        starts: where those of each tree begin, [trees].
        stops: where they end.
        counts: how many of them are to be run.
    """

    nodes: NDArray[Any]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    counts: NDArray[np.int64]


def planted(trees: Several[Tree], start: int, known: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Grove:
    """What there is to know of the nodes of trees, if those of the first one begin at a place `start` of others.

    Args:
        trees: one or more.
        start: where.
        known: tells of tokens where the states of nodes are kept that have no children; NO_CHILD where they are not
            known. Such nodes are not run, but for a root, and in a tree whose nodes are all to be shown.
    """
    sizes = np.array([len(tree.forced) for tree in trees])
    stops = start + np.cumsum(sizes)
    starts = stops - sizes
    tree_of = np.repeat(np.arange(len(trees)), sizes)
    child_counts = np.concatenate([tree.child_counts for tree in trees])
    nodes = np.zeros(len(tree_of), NODE)
    nodes["token"] = tokens = np.concatenate([tree.forced for tree in trees])
    # A root is nobody's child: of every tree there is a node more than there are children.
    nodes["first_child"] = np.cumsum(child_counts) - child_counts + tree_of + (start + 1)
    nodes["child_count"] = child_counts
    spared = child_counts == 0
    spared[starts - start] = False
    if any(tree.order is not None for tree in trees):
        spared &= np.repeat([tree.order is None for tree in trees], sizes)
    places = np.where(spared, known(tokens), NO_CHILD)
    nodes["place"] = places
    todo = np.flatnonzero(places == NO_CHILD)
    counts = np.bincount(tree_of[todo], minlength=len(trees))
    # What is to be run of each tree is told at its beginning.
    told = np.arange(len(todo)) + np.repeat(starts - start - np.cumsum(counts) + counts, counts)
    nodes["todo"][told] = todo + start
    depths = np.concatenate([tree.depths for tree in trees])[todo]
    first = np.ones(len(todo), np.bool_)  # of its level
    first[1:] = (depths[1:] != depths[:-1]) | (tree_of[todo[1:]] != tree_of[todo[:-1]])
    nodes["level_start"][told] = told[np.maximum.accumulate(np.where(first, np.arange(len(todo)), 0))] + start
    return Grove(nodes, starts, stops, counts)
