"""Generated tokens that wait to be emitted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from elman_server.scheduling.rows.table import Progress, RowTable

_ROOM = 256  # tokens of a row; more than the steps of a run


class PendingTokens:
    """The tokens of each row since its last emission; implements `RowStore`.

    They are kept apart from the records: the records of many rows are then few cache lines, which a run has just
    evicted.

    Args:
        table: the rows, whose records count these tokens.
        capacity: the number of rows.
    """

    def __init__(self, table: RowTable, capacity: int) -> None:
        self._table = table
        self._tokens = np.zeros((capacity, _ROOM), np.int32)

    def release(self, row: int) -> None:
        """Nothing to forget: the record says how many tokens there are."""

    def move(self, source: int, destination: int) -> None:
        self._tokens[destination] = self._tokens[source]

    @property
    def room(self) -> int:
        """For how many more tokens of every row there is room."""
        return _ROOM - int(self._table.records["pending_count"].max())

    def add(self, progress: Progress, tokens: NDArray[np.int64]) -> None:
        """Keep the tokens that rows have gained in a run, out of `tokens` [rows, steps]."""
        records = self._table.records
        steps = np.arange(tokens.shape[1])
        first = progress.first[:, None]
        at, step = np.nonzero((steps >= first) & (steps < first + progress.gained[:, None]))
        self._tokens[at, (records["pending_count"] - progress.first)[at] + step] = tokens[at, step]
        records["pending_count"] += progress.gained

    def due_rows(self, now: float, room: int) -> list[int]:
        """Returns the rows whose tokens are to be emitted: their time has come, or there is no room for `room` more."""
        records = self._table.records
        full = records["pending_count"] > _ROOM - room
        due = (records["pending_count"] > 0) & ((records["due"] <= now) | full)
        found: list[int] = np.flatnonzero(due).tolist()
        return found

    def take(self, row: int, now: float, interval: float) -> tuple[int, ...]:
        """Take out the tokens of a row, and set the time of its next emission.

        Args:
            row: the row.
            now: the time.
            interval: seconds between two emissions. The times are the same for all rows without an interval of their
                own: writing to all of them together costs less than writing to a few of them again and again.
        """
        record = self._table.records[row]
        tokens = tuple(self._tokens[row, : record["pending_count"]].tolist())
        record["pending_count"] = 0
        if np.isnan(record["interval"]):
            record["due"] = (now // interval + 1) * interval if interval else now
        else:
            record["due"] = now + record["interval"]
        return tokens
