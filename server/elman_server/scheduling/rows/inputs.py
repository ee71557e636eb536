"""The inputs of a run: forced ones from the sequences, random numbers from each request's seed."""

from __future__ import annotations

import numpy as np
import structlog
from numpy.typing import NDArray

from elman_server.decoding.in_graph import LEAST_UNIFORM
from elman_server.decoding.randomness import UniformStream
from elman_server.engine import FREE, Arrays, Chunk, is_filtered
from elman_server.scheduling.rows.table import RowTable
from elman_server.scheduling.sequence import Generation, Sequence

_DRAWN = 1024  # random numbers at a time: starting to draw costs as much as drawing thousands
_NOTHING_DRAWN = -_DRAWN

_log = structlog.get_logger(__name__)


class RowInputs:
    """Builds the inputs of runs; implements `RowStore`.

    Args:
        table: the rows.
        capacity: the number of rows.
        input_name: the step's input; None if it has none.

    Attributes:
        defective: the rows of the last chunk whose inputs are not their own, because of a defect.
    """

    def __init__(self, table: RowTable, capacity: int, input_name: str | None) -> None:
        self._table = table
        self._input_name = input_name
        self._uniforms = np.zeros((capacity, _DRAWN), np.float32)
        self._starts = np.full(capacity, _NOTHING_DRAWN)  # the position of the first number that is kept of each row
        self._streams: list[UniformStream | None] = [None] * capacity
        self.defective: list[int] = []

    def append(self, row: int, sequence: Sequence) -> None:
        """A sequence gets a row."""
        self._starts[row] = _NOTHING_DRAWN
        self._streams[row] = UniformStream(sequence.params.seed) if isinstance(sequence, Generation) else None

    def release(self, row: int) -> None:
        self._streams[row] = None

    def move(self, source: int, destination: int) -> None:
        self._uniforms[destination] = self._uniforms[source]
        self._starts[destination] = self._starts[source]
        self._streams[destination], self._streams[source] = self._streams[source], None

    def chunk(self, count: int) -> Chunk:
        """The next `count` steps of every row. A row that ends earlier gets inputs that do no harm."""
        table, records = self._table, self._table.records
        first = table.sequences[0].forced
        inputs = np.zeros((len(records), count, *first.shape[1:]), first.dtype)
        if table.vocabulary_size:
            inputs[:] = FREE
            inputs[:, 0] = records["last_token"]
        selection = table.selection
        targets = np.full((len(records), count), FREE) if selection.log_probabilities else None
        self.defective = []
        for row in np.flatnonzero(records["position"] < records["forced_end"]).tolist():
            sequence = table.sequences[row]
            start = int(records["position"][row]) - sequence.position
            try:
                part = sequence.forced[start : start + count]
                inputs[row, : len(part)] = part
                if targets is not None and sequence.targets is not None:
                    targets[row, : len(part)] = sequence.targets[start : start + count]
            except Exception:
                self._give_up(row)
        return Chunk(
            {} if self._input_name is None else {self._input_name: inputs},
            self._draw(count),
            records["temperature"],
            records["top_k"],
            records["top_p"],
            records["min_p"],
            self.filtered,
            selection,
            targets,
        )

    @property
    def filtered(self) -> bool:
        """Whether a row samples from its most probable tokens only."""
        records = self._table.records
        return is_filtered(records["top_k"], records["top_p"], records["min_p"], self._table.vocabulary_size)

    def prefill(self, rows: range, count: int) -> Arrays:
        """The next `count` forced inputs of some rows, [rows, count]."""
        records, sequences = self._table.records, self._table.sequences
        starts = [int(records["position"][row]) - sequences[row].position for row in rows]
        parts = [sequences[row].forced[at : at + count] for row, at in zip(rows, starts, strict=True)]
        assert self._input_name is not None
        return {self._input_name: np.stack(parts)}

    def replay(self, row: int, chunk: Chunk, tokens: NDArray[np.int64], start: int, stop: int) -> Arrays:
        """What a row has read in some steps of a chunk, as forced inputs.

        Args:
            row: the row.
            chunk: what was run.
            tokens: what was chosen, [rows, steps].
            start: the first step.
            stop: the step behind the last one.
        """
        if self._input_name is None:
            return {}
        inputs = np.array(chunk.inputs[self._input_name][row, start:stop])
        if self._table.vocabulary_size:
            free = np.flatnonzero(inputs == FREE)
            inputs[free] = tokens[row, start + free - 1]
        return {self._input_name: inputs}

    def _give_up(self, row: int) -> None:
        """A row that has met a defect runs with inputs that do no harm."""
        _log.exception("inputs of a row not built", row=row)
        self.defective.append(row)

    def _draw(self, count: int) -> NDArray[np.float32]:
        """The random numbers for the choices after the next `count` steps, [rows, count]. The number for a choice
        depends on the seed and on the number of steps taken by then."""
        records = self._table.records
        first = records["position"] + 1
        offsets = first - self._starts[: len(records)]
        missing = (offsets > _DRAWN - count) & (records["forced_end"] < first + count)
        for row in np.flatnonzero(missing).tolist():
            stream = self._streams[row]
            if stream is not None:
                try:
                    drawn = np.maximum(stream.take(int(first[row]), _DRAWN), LEAST_UNIFORM)
                except Exception:
                    self._give_up(row)
                    continue
                self._starts[row], offsets[row] = first[row], 0
                self._uniforms[row] = LEAST_UNIFORM if records["greedy"][row] else drawn
        # A row that chooses nothing in this chunk gets whatever is there.
        taken: NDArray[np.float32] = self._uniforms[
            np.arange(len(records))[:, None], np.minimum(offsets, _DRAWN - count)[:, None] + np.arange(count)
        ]
        return taken
