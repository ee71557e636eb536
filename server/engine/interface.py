"""What scheduling asks of an engine. The scheduler and the rpc room are tested against a hand-computable one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


class Engine(Protocol):
    """One model and the recurrent state of the sequences that run on it.

    A row is one sequence's place. Rows in use are kept compact by the caller: 0 to count - 1. Not thread-safe; one
    thread owns it.
    """

    @property
    def capacity(self) -> int:
        """The number of rows."""
        ...

    @property
    def provider(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        ...

    def insert(self, row: int, state: Arrays | None = None, constants: Arrays | None = None) -> None:
        """Give `row` to a new sequence: write its state, the model's initial one unless `state` is given.

        Args:
            row: the place.
            state: values by state input name, without the row axis, as `extract` returned them.
            constants: values by constant name, without the row axis; all of them or none where the model has none.
        """
        ...

    def move(self, source: int, destination: int) -> None:
        """Copy everything that `source` holds to `destination`; `source` is then free."""
        ...

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        """A copy of a row's state by state input name, without the row axis."""
        ...

    def step(self, rows: range, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Compute one step of `rows` without taking it: the next state is kept aside until `commit`.

        Args:
            rows: consecutive rows.
            inputs: by input name, [len(rows), *shape].

        Returns:
            Outputs by name, [len(rows), *shape], valid until the next call.

        Raises:
            EngineError: the step failed; no row has changed.
        """
        ...

    def commit(self) -> None:
        """Take the steps computed since the last commit: what was kept aside becomes the rows' state. Rows that were
        not stepped hold no meaningful state afterwards."""
        ...
