"""Running an iteration's steps: one run of all rows, and more as long as no row needs attention.

Rows that the engine runs faster in partitions go through the iteration on one thread per partition, which waits for no
other before the end. When a row needs attention, every partition stops after its current run and none is made to catch
up: a partition that was descheduled completes fewer steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import Arrays, Chunk, Engine, Results, run_concurrently
from elman_server.errors import EngineError
from elman_server.scheduling.costs import StepCosts
from elman_server.scheduling.isolation import engine_error, run_each
from elman_server.scheduling.rows.planning import Schedule


@dataclass(frozen=True)
class ModelOutput:
    """What the runs of an iteration have returned.

    Attributes:
        counts: int64 [rows], how many steps each row has taken.
        committed: int64 [rows], how many of them are committed: those of all runs but the last.
        results: of all steps, as many as the row with the most has taken. Outputs beyond tokens are there only where
            there could be no more than one run.
        uncommitted: the row ranges whose last run is not committed.
        failures: the rows that failed.
        failed_count: how many steps a run that failed would have taken, which are to be taken one by one; 0: none.
    """

    counts: NDArray[np.int64]
    committed: NDArray[np.int64]
    results: Results
    uncommitted: list[range]
    failures: dict[int, EngineError] = field(default_factory=dict)
    failed_count: int = 0


@dataclass
class _Partition:
    """Rows that go through an iteration together.

    Attributes:
        number: which partition it is; None if it is the only one.
        rows: its rows.
        chunk: the steps they may take.
        taken: how many they have taken.
        tokens: those of each run but the last.
        last: the results of the last run; None if it failed.
        failed_count: how many steps the failed run would have taken.
    """

    number: int | None
    rows: range
    chunk: Chunk
    taken: int = 0
    tokens: list[NDArray[np.int64]] = field(default_factory=list)
    last: Results | None = None
    failed_count: int = 0

    @property
    def committed(self) -> int:
        return sum(tokens.shape[1] for tokens in self.tokens)


class Execution:
    """The runs of one iteration.

    Args:
        engine: has the state of the rows.
        costs: learns how long runs take.
        schedule: what to run.
        interrupted: whether the loop has something to do before the model runs again.
        end_tokens: int64 [rows, 1], the token that ends each row.
    """

    def __init__(
        self,
        engine: Engine,
        costs: StepCosts,
        schedule: Schedule,
        interrupted: Callable[[], bool],
        end_tokens: NDArray[np.int64],
    ) -> None:
        self._engine = engine
        self._costs = costs
        self._schedule = schedule
        self._interrupted = interrupted
        self._end_tokens = end_tokens
        self._row_count = len(end_tokens)
        self._over = False

    def run(self, executor: Executor) -> ModelOutput | None:
        """Run the scheduled steps of every row.

        Args:
            executor: has the threads of the partitions that this thread does not run.

        Returns:
            The output; None if a row failed in the first run of several steps: nothing has changed, and the steps are
            to be run one by one.
        """
        chunk, count = self._schedule.chunk, self._schedule.count
        ranges = self._engine.divide(self._row_count)
        numbers = range(len(ranges)) if len(ranges) > 1 else [None]
        partitions = [_Partition(number, rows, chunk.part(rows)) for number, rows in zip(numbers, ranges, strict=True)]
        run_concurrently(executor, [partial(self._run_partition, partition) for partition in partitions])
        failed_count = max(partition.failed_count for partition in partitions)
        if failed_count and not any(partition.tokens for partition in partitions):
            return self._run_rows_alone(chunk.steps(0, 1)) if count == 1 else None
        counts, committed = np.zeros((2, self._row_count), np.int64)
        for partition in partitions:
            part = slice(partition.rows.start, partition.rows.stop)
            counts[part], committed[part] = partition.taken, partition.committed
        return ModelOutput(
            counts,
            committed,
            self._join(partitions),
            [partition.rows for partition in partitions if partition.last is not None],
            failed_count=failed_count,
        )

    def _run_partition(self, partition: _Partition) -> None:
        count = self._schedule.count
        try:
            while count:
                count = self._run(partition, count)
        finally:
            self._over = True

    def _run(self, partition: _Partition, count: int) -> int:
        """Run the next steps of a partition; returns how many are to follow. Its last run stays uncommitted."""
        if partition.last is not None:
            self._engine.commit(partition.rows)
            partition.tokens.append(partition.last.tokens.copy())
            partition.chunk.continue_from(partition.taken, partition.tokens[-1][:, -1])
        chunk, started = partition.chunk.steps(partition.taken, partition.taken + count), time.perf_counter()
        try:
            partition.last = self._engine.run(partition.rows, chunk, partition=partition.number)
        except Exception as error:
            engine_error(error)
            partition.last, partition.failed_count = None, count
            return 0
        now = time.perf_counter()
        self._costs.record_run(self._row_count, count, now - started)
        partition.taken += count
        following = self._schedule.next_count(self._costs, partition.taken, now)
        return following if following and not self._needs_attention(partition, partition.last) else 0

    def _needs_attention(self, partition: _Partition, last: Results) -> bool:
        end_tokens = self._end_tokens[partition.rows.start : partition.rows.stop]
        return bool(self._over or self._interrupted() or last.failed.any() or (last.tokens == end_tokens).any())

    def _join(self, partitions: list[_Partition]) -> Results:
        """The results of all partitions."""
        lasts = [partition.last for partition in partitions if partition.last is not None]
        if len(self._schedule.chunk) == self._schedule.count:  # There was one run.
            return lasts[0] if len(lasts) == 1 else _concatenate(lasts)
        shape = (self._row_count, max(partition.taken for partition in partitions))
        tokens, failed = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        for partition in partitions:
            runs = partition.tokens if partition.last is None else [*partition.tokens, partition.last.tokens]
            part = slice(partition.rows.start, partition.rows.stop)
            if runs:
                tokens[part, : partition.taken] = np.concatenate(runs, axis=1)
            if partition.last is not None:
                failed[part, partition.committed : partition.taken] = partition.last.failed
        return Results({}, tokens, failed)

    def _run_rows_alone(self, step: Chunk) -> ModelOutput:
        """A step of several rows failed: run it for each row, so that only those that fail alone do."""
        count = self._row_count
        rows = [range(row, row + 1) for row in range(count)]
        alone, failures = run_each(rows, lambda row: self._engine.run(row, step.part(row)))
        joined = Results({}, np.zeros((count, 1), np.int64), np.zeros((count, 1), np.bool_))
        values: dict[str, NDArray[np.float32]] = {}
        for row, results in alone.items():
            _place(results.outputs, row.start, joined.outputs, count)
            _place(results.states, row.start, joined.states, count)
            numbers = {"logits": results.logits, "log_probabilities": results.log_probabilities}
            _place({name: value for name, value in numbers.items() if value is not None}, row.start, values, count)
            if results.tokens.size:
                joined.tokens[row.start], joined.failed[row.start] = results.tokens[0], results.failed[0]
        output = replace(joined, logits=values.get("logits"), log_probabilities=values.get("log_probabilities"))
        failed = {row.start: error for row, error in failures.items()}
        return ModelOutput(np.ones(count, np.int64), np.zeros(count, np.int64), output, [range(count)], failed)


def _concatenate(parts: list[Results]) -> Results:
    """The results of the same steps of adjacent row ranges."""
    first = parts[0]

    def joined(name: str) -> NDArray[Any] | None:
        return None if getattr(first, name) is None else np.concatenate([getattr(part, name) for part in parts])

    return Results(
        {name: np.concatenate([part.outputs[name] for part in parts]) for name in first.outputs},
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.failed for part in parts]),
        logits=joined("logits"),
        log_probabilities=joined("log_probabilities"),
        states={name: np.concatenate([part.states[name] for part in parts]) for name in first.states},
    )


def _place(values: Arrays, row: int, joined: dict[str, NDArray[Any]], count: int) -> None:
    """Copy one row's arrays [1, ...] to its place in arrays of all rows, [count, ...]."""
    for name, value in values.items():
        joined.setdefault(name, np.zeros((count, *value.shape[1:]), value.dtype))[row] = value[0]
