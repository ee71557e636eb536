"""A graph in trial runs. Its tensors have their rows on axis 0, wherever the graph has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_server.engine.interface import Arrays
from elman_server.engine.trials.limits import run_limited
from elman_server.errors import ModelLoadError


@dataclass(frozen=True)
class TrialOutput:
    """An output.

    Attributes:
        shape: without the row axis; None for a size that may be any.
        row_axis: the index of the row axis in the graph.
    """

    shape: Sequence[int | None]
    row_axis: int = 0


@dataclass(frozen=True)
class TrialGraph:
    """A graph.

    Attributes:
        path: its file.
        session: a session on it, on the CPU.
        seconds: how long a run may take.
        outputs: the outputs that are looked at, by name.
        row_axes: of inputs whose row axis is not 0, by name.
    """

    path: Path
    session: onnxruntime.InferenceSession
    seconds: float
    outputs: Mapping[str, TrialOutput]
    row_axes: Mapping[str, int] = field(default_factory=dict)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run some rows.

        Args:
            feeds: by input name, [rows, ...].

        Returns:
            The outputs by name, [rows, ...].

        Raises:
            EngineError: onnxruntime failed.
            ModelLoadError: it takes too long, or an output does not have the shape that the manifest names.
        """
        found = run_limited(self.session, list(self.outputs), self.turned(feeds), path=self.path, seconds=self.seconds)
        rows = len(next(iter(feeds.values())))
        return {name: self._rows_first(name, value, rows) for name, value in zip(self.outputs, found, strict=True)}

    def turned(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """The inputs with their rows where the graph expects them."""
        return {
            name: np.ascontiguousarray(np.moveaxis(value, 0, self.row_axes.get(name, 0)))
            for name, value in feeds.items()
        }

    def _rows_first(self, name: str, value: NDArray[Any], rows: int) -> NDArray[Any]:
        expected: list[int | None] = [*self.outputs[name].shape]
        expected.insert(self.outputs[name].row_axis, rows)
        fits = value.ndim == len(expected) and all(
            size in (None, found) for size, found in zip(expected, value.shape, strict=True)
        )
        if not fits:
            shape = list(value.shape)
            raise ModelLoadError(
                f"{self.path}: output {name!r} has shape {shape} for {rows} rows; the manifest says {expected}"
            )
        return np.moveaxis(value, self.outputs[name].row_axis, 0)
