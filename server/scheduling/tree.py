"""A tree: what one caller wants of a model whose steps are taken at the nodes of trees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.scheduling.sequence import ReadingFinished, Sequence

# What there is to know of a node. Nodes are told by their numbers, counted level by level from the root on: so the
# children of a node are next to each other, and those of a level.
NODE = np.dtype(
    [
        ("token", np.int64),
        ("first_child", np.int64),
        ("child_count", np.int64),
        ("level_start", np.int64),  # the first node of its level
        ("place", np.int64),  # where its state is kept, until its parent has been computed
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

    def nodes(self, start: int) -> NDArray[Any]:
        """The records of its nodes, NODE [nodes], if the root is at a place `start` of others."""
        nodes = np.zeros(len(self.forced), NODE)
        nodes["token"] = self.forced
        nodes["first_child"] = np.cumsum(self.child_counts) - self.child_counts + (start + 1)
        nodes["child_count"] = self.child_counts
        nodes["level_start"] = np.searchsorted(self.depths, self.depths) + start
        return nodes

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
