"""Uniform random numbers that are a function of a seed and a position.

Counter-based (Philox4x64-10, Salmon et al. 2011): a retry, a resumed stream and any composition of the batch draw the
same numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_VALUES_PER_COUNT = 4  # Philox4x64 yields four 64-bit values per count.


class UniformStream:
    """The random numbers of one seed.

    Args:
        seed: any 64-bit integer, signed or unsigned.
    """

    def __init__(self, seed: int) -> None:
        self._key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, 0], dtype=np.uint64)

    def take(self, start: int, count: int) -> NDArray[np.float32]:
        """Return the numbers at the positions `start` to `start + count - 1`.

        Args:
            start: at least 0.
            count: number of positions.

        Returns:
            float32 [count], in [0, 1). They are multiples of 2^-23, so the product of any of them and a float32 total
            is less than the total.
        """
        first, skipped = divmod(start, _VALUES_PER_COUNT)
        # An array, because versions of numpy differ in how they split an integer key or counter.
        counter = np.array([first, 0, 0, 0], dtype=np.uint64)
        raw = np.random.Philox(key=self._key, counter=counter).random_raw(skipped + count)[skipped:]
        return (raw >> np.uint64(41)).astype(np.float32) * np.float32(2.0**-23)
