"""The state and constants of each row, in two sets of buffers that take turns.

A run reads the state from one buffer and writes the next state into the other, so a run that fails has changed nothing,
and a run that succeeds is committed by exchanging the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from elman_bundle import Bundle
from elman_protos.element_types import element_type
from elman_server.engine.graphs import Storage
from elman_server.engine.interface import Arrays, Encoded
from elman_server.engine.providers import Provider
from elman_server.errors import ModelLoadError


class RowStates:
    """What the model keeps for each row.

    Args:
        bundle: the model.
        provider: where it runs.
        capacity: the number of rows.

    Raises:
        ModelLoadError: an initial state is not what the manifest says.

    Attributes:
        storage: the buffers, which all graphs bind.
    """

    def __init__(self, bundle: Bundle, provider: Provider, capacity: int) -> None:
        self.storage = Storage(provider, capacity, bundle.spec)
        self._initial = initial_values(bundle)
        # Which of the two buffers holds the state of each row.
        self._phases = np.zeros(capacity, np.intp)

    def insert(self, row: int, state: Arrays | None, encoded: Encoded | None) -> None:
        """Write the state and the constants of a new sequence."""
        values: Arrays = self._initial
        if state is not None:
            values = state
        elif encoded is not None:
            values = {**self._initial, **encoded.state}
        if row:  # In the buffer of the row before it, with which it will run.
            self._phases[row] = self._phases[row - 1]
        for kept in self.storage.states:
            kept.buffers[self._phases[row]].write(row, np.asarray(values[kept.name])[None])
        if encoded is not None:
            self.storage.constants.write(row, encoded.constants)

    def move(self, source: int, destination: int) -> None:
        """Copy everything that a row holds."""
        self._phases[destination] = self._phases[source]
        for kept in self.storage.states:
            kept.buffers[self._phases[source]].copy_row(source, destination)
        self.storage.constants.move(source, destination)

    def rearrange(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Copy everything that each of `sources` holds to the row in the same place of `rows`, simultaneously."""
        phase = self.phase(range(min(*rows, *sources), max(*rows, *sources) + 1))
        for kept in self.storage.states:
            kept.buffers[phase].copy_rows(sources, rows)
        self.storage.constants.rearrange(rows, sources)

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        """A copy of a row's state."""
        phase = self._phases[row]
        return {kept.name: kept.buffers[phase].read(row, 1)[0].copy() for kept in self.storage.states}

    def phase(self, rows: range) -> int:
        """Returns which buffer holds the state of all these rows. States that are in the other one than that of the
        first row are copied, and what their last run wrote is lost."""
        phases = self._phases[rows.start : rows.stop]
        phase = int(phases[0])
        if (phases == phase).all():
            return phase
        edges = np.flatnonzero(np.diff(phases != phase, prepend=False, append=False)) + rows.start
        for start, stop in edges.reshape(-1, 2).tolist():
            for kept in self.storage.states:
                kept.buffers[phase].write(start, kept.buffers[1 - phase].read(start, stop - start))
        phases[:] = phase
        return phase

    def undo_run(self, row: int) -> None:
        """Make a row's uncommitted state equal to its state."""
        phase = self._phases[row]
        for kept in self.storage.states:
            kept.buffers[1 - phase].write(row, kept.buffers[phase].read(row, 1))

    def commit(self, rows: range) -> None:
        """Make what the last run of `rows` wrote their state."""
        self._phases[rows.start : rows.stop] ^= 1


def _fill(bundle: Bundle, name: str, fill: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The initial value of a state, a scalar; refused where its type has no such value."""
    with np.errstate(all="ignore"):
        value = np.asarray(fill).astype(dtype)
    exact = value == fill if np.issubdtype(dtype, np.integer) else np.isfinite(value) == np.isfinite(fill)
    if not exact:
        rule = f"{dtype} has no such value"
        raise ModelLoadError(f"{bundle.path}: the state {name!r} begins with {fill:g}; {rule}")
    return value


def initial_values(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The values at the start of a sequence, by state input name, without the row axis; zeros for encoded states.

    Raises:
        ModelLoadError: they are not what the manifest says.
    """
    values: dict[str, NDArray[Any]] = {}
    for state in bundle.spec.step.states:
        dtype, shape = element_type(state.data_type).dtype, tuple(state.shape)
        if not state.HasField("file"):
            values[state.input_name] = np.full(shape, _fill(bundle, state.input_name, state.fill, dtype))
            continue
        path = bundle.path / state.file
        try:
            value = load_file(path)[state.input_name]
        except Exception as error:  # safetensors raises several kinds for a damaged file.
            raise ModelLoadError(f"{path}: has no initial value of {state.input_name}: {error}") from error
        if value.shape != shape or value.dtype != dtype:
            raise ModelLoadError(
                f"{path}: {state.input_name} is {value.dtype} {value.shape}, the manifest says "
                f"{np.dtype(dtype)} {shape}"
            )
        values[state.input_name] = value
    return values
