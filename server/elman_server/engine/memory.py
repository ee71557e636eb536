"""Row-first arrays on the host or on a CUDA device, which sessions bind by address.

On a device rows are copied by the CUDA runtime that onnxruntime has loaded already. A row of a row-first array is
contiguous, so inserting and moving rows needs no kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_server.errors import EngineError, ModelLoadError


class Buffer(Protocol):
    """An array [rows, *shape] that a session reads or writes in place."""

    device: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def address(self, row: int) -> int:
        """The address of a row."""
        ...

    def write(self, row: int, values: NDArray[Any]) -> None:
        """Copy `values` [count, *shape] to the rows from `row` on."""
        ...

    def read(self, row: int, count: int) -> NDArray[Any]:
        """The values of `count` rows, [count, *shape], valid until they are written again."""
        ...

    def copy_row(self, source: int, destination: int) -> None:
        """Copy one row to another one."""
        ...

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy rows to other ones, simultaneously: a destination may be the source of another copy."""
        ...


class HostBuffer:
    """A Buffer in the memory of the host."""

    device = "cpu"

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.array: NDArray[Any] = np.zeros(shape, dtype)
        self.dtype = self.array.dtype
        self.shape = self.array.shape

    def address(self, row: int) -> int:
        return int(self.array.ctypes.data + row * self.array.strides[0])

    def write(self, row: int, values: NDArray[Any]) -> None:
        self.array[row : row + len(values)] = values

    def read(self, row: int, count: int) -> NDArray[Any]:
        return self.array[row : row + count]

    def copy_row(self, source: int, destination: int) -> None:
        self.array[destination] = self.array[source]

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        self.array[list(destinations)] = self.array[list(sources)]


_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
_RUNTIMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")


class CudaBuffer:
    """A Buffer in the memory of the first CUDA device."""

    device = "cuda"

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self._runtime = _cuda_runtime()
        self.dtype = np.dtype(dtype)
        self.shape = tuple(shape)
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        self._value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), self.dtype, "cuda", 0)
        self.write(0, np.zeros(shape, dtype))

    def address(self, row: int) -> int:
        return int(self._value.data_ptr() + row * self._row_bytes)

    def write(self, row: int, values: NDArray[Any]) -> None:
        packed = np.ascontiguousarray(values, self.dtype)
        self._copy(self.address(row), packed.ctypes.data, packed.nbytes, _TO_DEVICE)

    def read(self, row: int, count: int) -> NDArray[Any]:
        values = np.empty((count, *self.shape[1:]), self.dtype)
        self._copy(values.ctypes.data, self.address(row), values.nbytes, _TO_HOST)
        return values

    def copy_row(self, source: int, destination: int) -> None:
        self._copy(self.address(destination), self.address(source), self._row_bytes, _ON_DEVICE)

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        needed = set(destinations)
        kept = {source: self.read(source, 1) for source in sources if source in needed}
        for source, destination in zip(sources, destinations, strict=True):
            if source in kept:
                self.write(destination, kept[source])
            else:
                self.copy_row(source, destination)

    def _copy(self, destination: int, source: int, size: int, kind: int) -> None:
        code = self._runtime.cudaMemcpy(
            ctypes.c_void_p(destination), ctypes.c_void_p(source), ctypes.c_size_t(size), kind
        )
        # onnxruntime computes on a stream of its own, which does not wait for this one.
        code = code or self._runtime.cudaStreamSynchronize(None)
        if code:
            raise EngineError(f"the CUDA runtime could not copy {size} bytes: error {code}")


def _cuda_runtime() -> ctypes.CDLL:
    for name in _RUNTIMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ModelLoadError(f"the CUDA runtime is missing: none of {', '.join(_RUNTIMES)} loads")
