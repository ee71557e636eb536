"""Random numbers that depend on a seed and a position, and on nothing else.

Counter-based (Philox4x64-10, Salmon et al. 2011): a retry, a resumed stream or another batch draws the same numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_VALUES_PER_COUNT = 4  # One count of Philox4x64 gives four 64-bit values.


class UniformStream:
    """The uniform numbers of one seed.

    Args:
        seed: any 64-bit integer, signed or not.
    """

    def __init__(self, seed: int) -> None:
        self._key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, 0], dtype=np.uint64)

    def take(self, start: int, count: int) -> NDArray[np.float32]:
        """The numbers at the positions `start` (at least 0) to `start + count - 1`: in [0, 1), multiples of 2^-23,
        so that a float32 total times the largest of them stays below the total."""
        first, skipped = divmod(start, _VALUES_PER_COUNT)
        # An array and not an integer: numpy takes an integer key or counter apart differently across versions.
        counter = np.array([first, 0, 0, 0], dtype=np.uint64)
        raw = np.random.Philox(key=self._key, counter=counter).random_raw(skipped + count)[skipped:]
        return (raw >> np.uint64(41)).astype(np.float32) * np.float32(2.0**-23)
