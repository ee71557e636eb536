"""Batches of sequences of about the same length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from elman_training.lanes import Ids

_POOL = 50  # batches whose sequences are sorted together: enough for little padding, few enough for much mixing


_Length = TypeVar("_Length", int, tuple[int, int])


def make_buckets(lengths: Sequence[_Length], size: int, random: np.random.Generator) -> list[Ids]:
    """One epoch: the sequences are mixed, a pool of them at a time is sorted by length and cut into batches, and the
    batches are mixed.

    Args:
        lengths: of each sequence; of pairs both, of which the first counts for more.
        size: of a batch; the last one of all may be smaller.
        random: what mixes.

    Returns:
        the indices of each batch, every sequence in one of them.
    """
    order = random.permutation(len(lengths))
    batches: list[Ids] = []
    for start in range(0, len(order), size * _POOL):
        pool = sorted(order[start : start + size * _POOL].tolist(), key=lengths.__getitem__)
        batches += [np.array(pool[first : first + size]) for first in range(0, len(pool), size)]
    return [batches[place] for place in random.permutation(len(batches))]
