"""Taking rows from sequences that continue later exactly where they were."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Several

from elman_server.engine import Engine
from elman_server.scheduling.compaction import RowStore, compact
from elman_server.scheduling.events import BeamsFinished, Event, Finished, FinishReason
from elman_server.scheduling.interface import INTERNAL, Emission
from elman_server.scheduling.isolation import log_defect
from elman_server.scheduling.rows.emissions import defect_end, new_tokens
from elman_server.scheduling.rows.host_sampler import HostSampler
from elman_server.scheduling.rows.inputs import RowInputs
from elman_server.scheduling.rows.pending import PendingTokens
from elman_server.scheduling.rows.release import release, rows_of
from elman_server.scheduling.rows.table import RowTable
from elman_server.scheduling.sequence import Beams, Preempted, Sequence


class RowPreemption:
    """Takes rows from running sequences; implements `Preemption`.

    States leave the engine and records leave the table. The host sampler keeps what it has under numbers that are no
    rows, because a grammar's matcher cannot be copied.

    Args:
        name: the model's name, for the log.
        engine: has the states of the rows.
        table: the rows.
        pending: their coalesced tokens.
        inputs: builds the inputs of runs.
        host: samples for some of the rows.
        stores: what else keeps something for each row.
        fail: fails all sequences that have rows.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        table: RowTable,
        pending: PendingTokens,
        inputs: RowInputs,
        host: HostSampler,
        stores: Several[RowStore],
        fail: Callable[[Exception], list[Emission]],
    ) -> None:
        self._name = name
        self._engine = engine
        self._table = table
        self._pending = pending
        self._inputs = inputs
        self._host = host
        self._stores = stores
        self._fail = fail
        self._keys = itertools.count(-1, -1)

    def preempt(self, sequences: Several[Sequence]) -> list[Emission]:
        emissions: list[Emission] = []
        for sequence in sequences:
            rows = rows_of([sequence], self._table)
            try:
                tokens = self._pending.take(rows[0], 0.0, 0.0)
                if tokens and not sequence.aborted:
                    emissions.append(new_tokens(sequence, tokens))
                self._save(sequence, list(sequence.rows) if isinstance(sequence, Beams) else rows)
            except Exception:
                log_defect(self._name)
                emissions.append(defect_end(sequence))
            try:
                emissions += release(rows, self._table, self._stores)
            except Exception:  # Nothing is known of any row.
                log_defect(self._name)
                return emissions + self._fail(INTERNAL)
        return emissions

    def _save(self, sequence: Sequence, rows: list[int]) -> None:
        keys = [next(self._keys) for _ in rows]
        records = [self._table.records[row].copy() for row in rows]
        states = [self._engine.extract(row) for row in rows]
        for row, key in zip(rows, keys, strict=True):
            self._host.move(row, key)
        sequence.preempted = Preempted(keys, records, states)

    def resume(self, sequence: Sequence) -> None:
        """Give rows to a preempted sequence again; if that fails, it is forgotten, and nothing else has changed."""
        assert sequence.preempted is not None
        first, saved = len(self._table), sequence.preempted
        encoded = sequence.source.encoded if sequence.source else None
        try:
            for key, record, state in zip(saved.keys, saved.records, saved.states, strict=True):
                row = self._table.restore(sequence, record)
                self._inputs.append(row, sequence)
                self._host.move(key, row)
                self._engine.insert(row, state, encoded)
        except Exception:
            compact(range(first, len(self._table)), len(self._table), self._table, self._stores)
            raise
        finally:
            self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        saved, sequence.preempted = sequence.preempted, None
        for key in saved.keys if saved else ():
            self._host.release(key)

    def expired(self, sequence: Sequence) -> Event:
        assert sequence.preempted is not None
        (record, *_), (state, *_) = sequence.preempted.records, sequence.preempted.states
        self.forget(sequence)
        if isinstance(sequence, Beams):
            assert sequence.search is not None
            found = tuple(sequence.search.results())
            return BeamsFinished(found, cut_short=True, step_count=sequence.step_count, started_at=sequence.started_at)
        position = int(record["position"])
        kept = state if sequence.keep_state else None
        steps = position - sequence.position
        return Finished(FinishReason.TIME_LIMIT, position, kept, steps, sequence.started_at)
