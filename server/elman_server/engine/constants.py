"""The constants of each row: what its encoder returned for its source.

Constants of variable length have an axis of positions. It is as long as the longest row in use needs, rounded up so
that it seldom changes; shorter rows are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.engine.memory import Buffer

Allocate = Callable[[Iterable[int], Any], Buffer]

_FINE, _COARSE, _COARSE_FROM = 8, 32, 64  # positions; the axis is a multiple of 8, or of 32 beyond 64
_NO_OWNER = -1
_SHRINK = 0.75  # the axis becomes shorter where less than this share of it is needed


def padded_length(length: int, longest: int) -> int:
    """Returns the length of the axis of positions where the longest row has `length`, and a row may have `longest`."""
    unit = _FINE if length <= _COARSE_FROM else _COARSE
    return min(-(-length // unit) * unit, longest)


class Constants:
    """The constants of all rows. Rows in use are 0 to some last one; those after it may be lost.

    Args:
        specs: the constants in the manifest.
        capacity: the number of rows.
        longest: the largest number of positions of a row.
        allocate: returns a buffer of `capacity` rows of a shape.

    Attributes:
        buffers: by name, [capacity, *shape]. Those of variable length are replaced when their length changes.
        version: increases whenever buffers are replaced.
    """

    def __init__(self, specs: Iterable[v1.ConstantSpec], capacity: int, longest: int, allocate: Allocate) -> None:
        self.version = 0
        self._specs = list(specs)
        self._longest = longest
        self._allocate = allocate
        self._positions = min(_FINE, longest)
        self._lengths = np.zeros(capacity, np.int64)
        # Rows of one beam search hold the same constants; equal owners need no copy.
        self._owners = np.full(capacity, _NO_OWNER, np.int64)
        self._numbers = count()
        self.buffers: dict[str, Buffer] = {spec.name: self._new_buffer(spec) for spec in self._specs}

    def write(self, row: int, values: dict[str, NDArray[Any]]) -> None:
        """Write the constants of a row, which is the last one in use.

        Args:
            row: the row.
            values: by name, [*shape]; of those of variable length, [length, *shape].
        """
        if not self._specs:
            return
        variable = [spec.name for spec in self._specs if spec.variable_length]
        self._lengths[row] = len(values[variable[0]]) if variable else 0
        self._owners[row] = next(self._numbers)
        if variable:
            self._fit(row)
        for spec in self._specs:
            value = np.asarray(values[spec.name])
            if spec.variable_length:
                padded = np.zeros((self._positions, *value.shape[1:]), value.dtype)
                padded[: len(value)] = value
                value = padded
            self.buffers[spec.name].write(row, value[None])

    def move(self, source: int, destination: int) -> None:
        """Copy the constants of a row to another one."""
        for buffer in self.buffers.values():
            buffer.copy_row(source, destination)
        self._lengths[destination] = self._lengths[source]
        self._owners[destination] = self._owners[source]

    def rearrange(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Copy rows to other ones, simultaneously; rows with the same owner are skipped."""
        if not self._specs:
            return
        pairs = [
            (row, source)
            for row, source in zip(rows, sources, strict=True)
            if self._owners[row] != self._owners[source]
        ]
        if not pairs:
            return
        destinations, origins = map(list, zip(*pairs, strict=True))
        for buffer in self.buffers.values():
            buffer.copy_rows(origins, destinations)
        self._lengths[destinations] = self._lengths[origins]
        self._owners[destinations] = self._owners[origins]

    def _new_buffer(self, spec: v1.ConstantSpec) -> Buffer:
        shape = [self._positions, *spec.shape[1:]] if spec.variable_length else spec.shape
        return self._allocate(shape, element_type(spec.data_type).dtype)

    def _fit(self, last: int) -> None:
        """Make the axis of positions as long as the rows up to `last` need."""
        needed = padded_length(int(self._lengths[: last + 1].max()), self._longest)
        if _SHRINK * self._positions < needed <= self._positions:
            return
        # The rows after it are not copied, so they have no owner any more.
        self._owners[last + 1 :] = _NO_OWNER
        before, self._positions = self._positions, needed
        kept = min(before, needed)
        for spec in self._specs:
            if spec.variable_length:
                old = self.buffers[spec.name]
                self.buffers[spec.name] = new = self._new_buffer(spec)
                values = np.zeros((last, *new.shape[1:]), new.dtype)
                values[:, :kept] = old.read(0, last)[:, :kept]
                new.write(0, values)
        self.version += 1
