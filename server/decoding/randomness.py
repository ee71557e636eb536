"""Random numbers that depend on a seed and a position, and on nothing else.

Counter-based (Philox4x64-10, Salmon et al. 2011): a retry, a resumed stream or another batch draws the same numbers.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 64
_VALUES_PER_COUNT = 4  # One count of Philox4x64 gives four 64-bit values.


class UniformStream:
    """The uniform numbers of one seed.

    Args:
        seed: any 64-bit integer, signed or not.
    """

    def __init__(self, seed: int) -> None:
        self._key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, 0], dtype=np.uint64)
        self._block = -1
        self._values: list[float] = []

    def at(self, position: int) -> float:
        """The number at `position` (at least 0): in [0, 1), a multiple of 2^-53."""
        block, within = divmod(position, _BLOCK)
        if block != self._block:
            # An array and not an integer: numpy takes an integer key or counter apart differently across versions.
            counter = np.array([block * _BLOCK // _VALUES_PER_COUNT, 0, 0, 0], dtype=np.uint64)
            raw = np.random.Philox(key=self._key, counter=counter).random_raw(_BLOCK)
            self._values = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
            self._block = block
        return self._values[within]
