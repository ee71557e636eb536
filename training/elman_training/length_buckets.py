"""Batches of sequences of similar length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from elman_training.task import Ids

_POOL = 50  # batches sorted together: enough for little padding, few enough for good mixing

_Length = TypeVar("_Length", int, tuple[int, int])


def make_buckets(lengths: Sequence[_Length], size: int, random: np.random.Generator) -> list[Ids]:
    """Make the batches of one epoch.

    The sequences are shuffled, sorted by length within pools, cut into batches, and the batches are shuffled.

    Args:
        lengths: the length of each sequence; for pairs both lengths, sorted by the first one first.
        size: the number of sequences of a batch; the last batch of all may be smaller.
        random: the source of the shuffling.

    Returns:
        The indices of each batch. Every sequence is in one of them.
    """
    order = random.permutation(len(lengths))
    batches: list[Ids] = []
    for start in range(0, len(order), size * _POOL):
        pool = sorted(order[start : start + size * _POOL].tolist(), key=lengths.__getitem__)
        batches += [np.array(pool[first : first + size]) for first in range(0, len(pool), size)]
    return [batches[index] for index in random.permutation(len(batches))]
