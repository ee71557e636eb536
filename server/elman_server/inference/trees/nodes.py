"""The nodes of trees in the order in which they run, whichever form the request gave them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_server.errors import InputTooLongError

MAX_NODES = 10_000
MAX_DEPTH = 1_000  # nodes on one path from the root
NO_WORD = -1  # in place of a token


@dataclass(frozen=True)
class Nodes:
    """The nodes of one tree after another; those of a tree level by level from the root, the children of one node
    before those of the next.

    Attributes:
        sizes: number of nodes of each tree.
        tokens: int64 [nodes], what each reads; NO_WORD for nothing.
        child_counts: int64 [nodes].
        order: int64 [nodes], the place of each among all nodes in the order of the response, which is that of the list
            or of the opening brackets.
        depths: int64 [nodes], distance from the root.
        locate: where the node of a place in that order stands in the request: its field, and a description where the
            field holds more than the node.
    """

    sizes: list[int]
    tokens: NDArray[np.int64]
    child_counts: NDArray[np.int64]
    order: NDArray[np.int64]
    depths: NDArray[np.int64]
    locate: Callable[[int], tuple[str, str]]


def too_many_nodes(field: str, count: int) -> InputTooLongError:
    """The error of a tree with too many nodes."""
    return InputTooLongError(field, f"{count} nodes", f"a tree may have at most {MAX_NODES}", limit=MAX_NODES)


def too_deep(field: str, node: str) -> InputTooLongError:
    """The error of a tree whose `node` is too far from the root."""
    rule = f"at most {MAX_DEPTH} is allowed"
    return InputTooLongError(field, f"{node} at depth {MAX_DEPTH + 1}", rule, limit=MAX_DEPTH)
