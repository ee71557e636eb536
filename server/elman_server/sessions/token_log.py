"""The tokens of a session. Forks share them until they differ: tokens are only ever added, never changed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOKEN_TYPE = "i"  # of arrays of tokens
TOKEN_BYTES = array(TOKEN_TYPE).itemsize


class TokenLog:
    """The first tokens of an array that several logs may share. A log that ends where the array ends appends to the
    array; any other log first copies its part.

    Args:
        tokens: the array; it must not be changed any more.
    """

    __slots__ = ("_array", "_length")

    def __init__(self, tokens: array[int] | None = None) -> None:
        self._array = array(TOKEN_TYPE) if tokens is None else tokens
        self._length = len(self._array)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    def __getitem__(self, part: slice) -> array[int]:
        start, stop, step = part.indices(self._length)
        return self._array[start : None if stop < 0 else stop : step]

    def __eq__(self, other: object) -> bool:
        return self[:] == (other[:] if isinstance(other, TokenLog) else other)

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._array[: self._length], dtype)

    def __repr__(self) -> str:
        return f"TokenLog({self[:]!r})"

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        if len(self._array) != self._length:
            self._array = self._array[: self._length]
        self._array.extend(tokens)
        self._length = len(self._array)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._length = max(0, min(length, self._length))

    def fork(self, length: int) -> TokenLog:
        """Returns a log with the first `length` tokens, which are not copied."""
        forked = TokenLog(self._array)
        forked._length = max(0, min(length, self._length))
        return forked
