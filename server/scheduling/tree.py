"""A tree: what one caller wants of a model whose steps are taken at the nodes of trees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engine import NO_CHILD
from server.scheduling.sequence import ReadingFinished, Sequence

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

    def nodes(self, start: int, known: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
        """Its nodes, if the root is at a place `start` of others.

        Args:
            start: where.
            known: where the state of each is kept, if it has no children and its state is known; else NO_CHILD. The
                root is run all the same, and where all nodes are to be shown all are.

        Returns:
            their records, NODE [nodes], and how many of them are to be run.
        """
        nodes = np.zeros(len(self.forced), NODE)
        nodes["token"] = self.forced
        nodes["first_child"] = np.cumsum(self.child_counts) - self.child_counts + (start + 1)
        nodes["child_count"] = self.child_counts
        todo, depths = np.arange(len(nodes)), self.depths
        if self.order is None:
            nodes["place"] = np.where(self.child_counts == 0, known, NO_CHILD)
            nodes["place"][0] = NO_CHILD
            todo = np.flatnonzero(nodes["place"] == NO_CHILD)
            depths = depths[todo]
        nodes["todo"][: len(todo)] = todo + start
        nodes["level_start"][: len(todo)] = np.searchsorted(depths, depths) + start
        return nodes, len(todo)

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
