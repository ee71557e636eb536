"""A tree to be labelled: one request of a model whose steps are taken at the nodes of trees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.scheduling.events import ReadingFinished
from elman_server.scheduling.sequence import Sequence


@dataclass(eq=False)
class Tree(Sequence):
    """A tree to be labelled, at its root or at every node. Its `forced` are the tokens of its nodes, level by level.

    Attributes:
        depths: int64 [nodes], the distance of each from the root; ascending.
        child_counts: int64 [nodes], the number of children of each. Those of the first node come first, and so on.
        order: int64 [nodes], the place of each node in the answer; None: only the root is labelled.
        outputs: the outputs so far, in the order of the answer.
    """

    depths: NDArray[np.int64] = field(kw_only=True)
    child_counts: NDArray[np.int64] = field(kw_only=True)
    order: NDArray[np.int64] | None = field(default=None, kw_only=True)
    outputs: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0), np.float32), init=False)

    def show(self, outputs: NDArray[Any], start: int) -> None:
        """Take the outputs [nodes, labels] of the nodes from `start` on. The root, where only it is labelled, comes
        last."""
        if self.order is None:
            self.outputs = outputs[:1].copy()
            return
        if not len(self.outputs):
            self.outputs = np.empty((len(self.forced), *outputs.shape[1:]), outputs.dtype)
        self.outputs[self.order[start : start + len(outputs)]] = outputs

    def finished(self) -> ReadingFinished:
        return ReadingFinished(self.outputs, None, np.empty(0, np.float32), {})
