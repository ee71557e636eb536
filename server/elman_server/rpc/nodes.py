"""The nodes of trees as requests bring them, in whichever form, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_server.errors import InputTooLongError

MOST_NODES = 10_000
DEEPEST = 1_000  # nodes on one way from the root
NO_WORD = -1  # in the place of a token


@dataclass(frozen=True)
class Nodes:
    """The nodes of trees, of one after those of the other; of each level by level from the root on, the children of one
    before those of the next.

    Attributes:
        sizes: how many each tree has.
        tokens: what each reads; NO_WORD where nothing stands at it.
        child_counts: how many children each has.
        order: its place among all in the order of the answer, which is that of the list or of the opening brackets.
        depths: how far it is from the root.
        where: where a node stands in its request, given its place in that order: the field, and what is to be said of
            it besides.
    """

    sizes: list[int]
    tokens: NDArray[np.int64]
    child_counts: NDArray[np.int64]
    order: NDArray[np.int64]
    depths: NDArray[np.int64]
    where: Callable[[int], tuple[str, str]]


def too_many(field: str, count: int) -> InputTooLongError:
    """What is said of so many nodes."""
    return InputTooLongError(field, f"{count} nodes", f"a tree may have at most {MOST_NODES}", limit=MOST_NODES)


def too_deep(field: str, what: str) -> InputTooLongError:
    """What is said of the first node that is too far from the root."""
    rule = f"at most {DEEPEST} is allowed"
    return InputTooLongError(field, f"{what} at depth {DEEPEST + 1}", rule, limit=DEEPEST)
