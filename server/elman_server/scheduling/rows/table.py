"""One record per row: where its sequence stands, and how it samples.

The records of the rows in use are kept compact, so that what happens to all rows is done in numpy for all of them.
Nothing here runs a model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.beams import BeamSearch
from elman_server.decoding.in_graph import GREEDY_TEMPERATURE
from elman_server.engine import DEFAULT_OUTPUTS, OutputSelection
from elman_server.scheduling.sequence import Beams, Generation, Sequence

NO_TOKEN = -1
NEVER = np.iinfo(np.int64).max
# Divided by this temperature every finite logit is as good as 0; by infinity a forbidden one would become NaN.
_HOTTEST = 1e30

RECORD = np.dtype(
    [
        ("position", np.int64),  # steps taken since the sequence was empty
        ("forced_end", np.int64),  # the position where the forced steps end
        ("end", np.int64),  # the position where the sequence ends at the latest
        ("generates", np.bool_),
        ("keeps_state", np.bool_),  # at its end, to be continued
        ("snapshot_at", np.int64),  # the position from which on a snapshot is due
        ("halt_at", np.int64),  # a position at which a run has to end, because its state is needed
        ("last_token", np.int64),  # the input of the next free step
        ("end_token", np.int64),  # NO_TOKEN where there is none
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("greedy", np.bool_),
        ("pending_count", np.int64),  # tokens that wait to be emitted
        ("interval", np.float64),  # seconds between two emissions; NaN: the scheduler's own
        ("due", np.float64),  # when the pending tokens are to be emitted
        ("needs_logits", np.bool_),  # at each step at which a token is chosen
        ("time_limit", np.float64),  # when it finishes with what there is
        ("stops", np.bool_),  # at stop sequences
    ]
)


@dataclass
class Progress:
    """What a run brings each row as far as nothing ends it early, [rows] each.

    Attributes:
        counts: the number of steps.
        position: the steps taken before the run.
        left: the steps that were left before the run.
        first: the index of the first step whose choice counts.
        gained: the number of choices that count.
    """

    counts: NDArray[np.int64]
    position: NDArray[np.int64]
    left: NDArray[np.int64]
    first: NDArray[np.int64]
    gained: NDArray[np.int64]


class RowTable:
    """The sequences and records of rows 0 to `len(table) - 1`; implements `RowStore`.

    Args:
        capacity: the number of rows.
        vocabulary_size: of the generated tokens; 0 if the model generates none.

    Attributes:
        sequences: the sequence of each row; a beam search has several rows.
        selection: everything that any row selects beyond tokens and labels.
    """

    def __init__(self, capacity: int, vocabulary_size: int) -> None:
        self.sequences: list[Sequence] = []
        self.selection = DEFAULT_OUTPUTS
        self.vocabulary_size = vocabulary_size
        self._records = np.zeros(capacity, RECORD)
        self._selections: Counter[OutputSelection] = Counter()
        self._kinds: Counter[type[Sequence]] = Counter()

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def records(self) -> NDArray[Any]:
        """The records of the rows in use."""
        return self._records[: len(self.sequences)]

    def append(self, sequence: Sequence) -> int:
        """Give the next row to a sequence; returns the row."""
        row = len(self.sequences)
        record = np.zeros((), RECORD)
        record["position"] = sequence.position
        record["forced_end"] = sequence.position + len(sequence.forced)
        record["end"] = sequence.position + sequence.max_steps
        record["snapshot_at"], record["halt_at"] = _next_snapshot(sequence, sequence.position)
        record["keeps_state"] = sequence.keep_state
        record["end_token"] = NO_TOKEN
        record["temperature"], record["top_k"], record["top_p"] = 1, self.vocabulary_size, 1
        record["needs_logits"], record["time_limit"] = sequence.selection.logits, np.inf
        if isinstance(sequence, Generation):
            self._write_sampling(record, sequence)
        if isinstance(sequence, Generation | Beams) and sequence.time_limit is not None:
            record["time_limit"] = sequence.time_limit
        if isinstance(sequence, Beams):
            sequence.rows.append(row)
            sequence.search = BeamSearch(sequence.params, self.vocabulary_size)
        self._records[row] = record
        self.sequences.append(sequence)
        self._count(sequence, 1)
        return row

    def _write_sampling(self, record: NDArray[Any], sequence: Generation) -> None:
        params = sequence.params
        record["generates"] = True
        record["stops"] = sequence.stop is not None
        record["greedy"] = params.temperature == 0
        record["temperature"] = min(max(params.temperature, GREEDY_TEMPERATURE), _HOTTEST)
        record["interval"] = np.nan if sequence.interval is None else sequence.interval
        if params.end_token is not None:
            record["end_token"] = params.end_token
        if not params.needs_logits:  # Otherwise the token that the graph chooses is not used.
            record["top_k"] = self.vocabulary_size if params.top_k is None else params.top_k
            record["top_p"], record["min_p"] = params.top_p, params.min_p

    def restore(self, sequence: Sequence, record: NDArray[Any]) -> int:
        """Give the next row, and the record that it had, to a sequence that was preempted; returns the row."""
        row = len(self.sequences)
        self._records[row] = record
        self.sequences.append(sequence)
        self._count(sequence, 1)
        if isinstance(sequence, Beams):
            sequence.rows.append(row)
        return row

    def append_copy(self, beams: Beams) -> int:
        """Give the next row to a beam search that has one already; returns the row."""
        return self.restore(beams, self._records[beams.rows[0]])

    def release(self, row: int) -> None:
        leaving = self.sequences[row]
        self._count(leaving, -1)
        if isinstance(leaving, Beams):
            leaving.rows.remove(row)
        if row == len(self.sequences) - 1:
            self.sequences.pop()

    def move(self, source: int, destination: int) -> None:
        self._records[destination] = self._records[source]
        moving = self.sequences[destination] = self.sequences.pop()
        if isinstance(moving, Beams):
            moving.rows[moving.rows.index(source)] = destination

    def clear(self) -> None:
        """Forget all rows."""
        self.sequences.clear()
        self._selections.clear()
        self._kinds.clear()
        self.selection = DEFAULT_OUTPUTS

    def _count(self, sequence: Sequence, change: int) -> None:
        self._kinds[type(sequence)] += change
        self._selections[sequence.selection] += change
        self.selection = DEFAULT_OUTPUTS
        for selection in +self._selections:
            self.selection |= selection

    def count(self, kind: type[Sequence]) -> int:
        """Returns the number of rows of one kind of sequence."""
        return self._kinds[kind]

    @property
    def reserved(self) -> int:
        """The number of rows that are kept free for beam searches that will need them."""
        if not self.count(Beams):
            return 0
        searches = {id(sequence): sequence for sequence in self.sequences if isinstance(sequence, Beams)}
        return sum(search.row_count - len(search.rows) for search in searches.values())

    @property
    def end_tokens(self) -> NDArray[np.int64]:
        """The token that ends each row, int64 [rows, 1]; NO_TOKEN where there is none."""
        ends: NDArray[np.int64] = self.records["end_token"][:, None]
        return ends

    def rows_needing_logits(self, count: int) -> list[int]:
        """Returns the rows for which a token is chosen by the logits after `count` steps."""
        records = self.records
        found = records["needs_logits"] & (records["position"] + count >= records["forced_end"])
        return np.flatnonzero(found).tolist()

    def progress(self, counts: NDArray[np.int64]) -> Progress:
        """What `counts` steps, [rows], bring each row."""
        records = self.records
        left = records["end"] - records["position"]
        # The choice after the last forced step is the first that counts.
        first = np.maximum(records["forced_end"] - 1 - records["position"], 0)
        gained = np.maximum(np.minimum(left, counts) - first, 0) * records["generates"]
        return Progress(counts, records["position"].copy(), left, first, gained)

    def advance(self, counts: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Every row has taken `counts` steps, [rows], and chosen `tokens`, [rows, steps]."""
        records = self.records
        records["position"] += counts
        if tokens.size:
            last = tokens[np.arange(len(records)), np.maximum(counts, 1) - 1]
            records["last_token"] = np.where(counts > 0, last, records["last_token"])

    def take_snapshot(self, row: int) -> int:
        """Returns the position of a row whose snapshot is taken, and schedules its next one."""
        record = self._records[row]
        position = int(record["position"])
        record["snapshot_at"], record["halt_at"] = _next_snapshot(self.sequences[row], position)
        return position


def _next_snapshot(sequence: Sequence, position: int) -> tuple[int, int]:
    """Returns the position from which on a snapshot is due, and the position that no run may pass."""
    if sequence.snapshot_steps is None:
        return NEVER, NEVER
    following = position + sequence.snapshot_steps
    if not (isinstance(sequence, Generation) and sequence.snapshots_prompt):
        return following, NEVER
    last = sequence.position + len(sequence.forced) - 1
    return (min(following, last), last) if position < last else (NEVER, NEVER)
