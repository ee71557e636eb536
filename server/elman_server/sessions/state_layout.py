"""The state of a model as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StateLayout:
    """How the state of one sequence is packed: its arrays one after another, in C order.

    Args:
        arrays: dtype and shape, by state input name.

    Attributes:
        arrays: the same.
        size: bytes of a packed state.
    """

    def __init__(self, arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
        self.arrays = dict(arrays)
        self.size = sum(_size(dtype, shape) for dtype, shape in self.arrays.values())

    def pack(self, state: Mapping[str, NDArray[Any]]) -> bytes:
        """Return the bytes of a state, by state input name."""
        return b"".join(np.ascontiguousarray(state[name]).tobytes() for name in self.arrays)

    def unpack(self, packed: bytes) -> dict[str, NDArray[Any]]:
        """Return the arrays of a state, by state input name; they share the memory of the bytes."""
        state, offset = {}, 0
        for name, (dtype, shape) in self.arrays.items():
            size = _size(dtype, shape)
            state[name] = np.frombuffer(packed, dtype, size // dtype.itemsize, offset).reshape(shape)
            offset += size
        return state


def _size(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    return int(dtype.itemsize * np.prod(shape, dtype=np.int64))
