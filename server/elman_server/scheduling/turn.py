"""What is run in a turn: one run of all rows, and as many more as nobody needs to see to.

Rows that the engine runs fastest beside each other are lanes: each goes through the turn on a thread of its own and
waits for no other before its end. When one has to be seen to, the others end as soon as their run does, and none is
made to catch up: whoever has lost its core for a while has taken fewer steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import Arrays, Chunk, Engine, Results, side_by_side
from elman_server.errors import EngineError
from elman_server.scheduling.pace import Pace


@dataclass(frozen=True)
class Plan:
    """What a turn may do.

    Attributes:
        chunk: its steps, all that it may take.
        count: how many the first run takes.
        most: how many are of use.
        exact: whether it is better to take too few than more than those.
        available: how many one run can take.
        quiet: for so many nothing can happen to a row that has to be seen to, but that it chooses its end token.
        until: when a row is to be told something.
    """

    chunk: Chunk
    count: int
    most: int
    exact: bool
    available: Sequence[int]
    quiet: int = 0
    until: float = 0.0


@dataclass(frozen=True)
class Ran:
    """What the runs of a turn have brought.

    Attributes:
        counts: int64 [rows], how many steps each row has taken.
        committed: int64 [rows], how many of them for good: those of all runs but the last.
        results: of all steps, as many as the row with the most has taken; outputs and what else is wanted only where
            there could be no more than one run.
        lanes: the rows whose last run is kept aside.
        failures: the rows that failed.
        failed_count: how many steps a run would have taken that has failed, which are to be taken one by one; 0: none.
    """

    counts: NDArray[np.int64]
    committed: NDArray[np.int64]
    results: Results
    lanes: list[range]
    failures: dict[int, EngineError] = field(default_factory=dict)
    failed_count: int = 0


@dataclass
class _Lane:
    """Rows that go through a turn together.

    Attributes:
        number: which of several it is; None if it is the only one.
        rows: which.
        chunk: the steps they may take.
        taken: how many they have taken.
        tokens: those of each run but the last.
        last: what the last run has brought; None if it has failed.
        failed_count: how many steps it would have taken.
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


class Turn:
    """One turn of all rows in use.

    Args:
        engine: has their state.
        pace: how long runs are.
        plan: what may be done.
        interrupted: whether there is something to be done before the model is run once more.
        end_tokens: int64 [rows, 1], the token each row ends at.
    """

    def __init__(
        self, engine: Engine, pace: Pace, plan: Plan, interrupted: Callable[[], bool], end_tokens: NDArray[np.int64]
    ) -> None:
        self._engine = engine
        self._pace = pace
        self._plan = plan
        self._interrupted = interrupted
        self._end_tokens = end_tokens
        self._row_count = len(end_tokens)
        self._over = False

    def run(self, executor: Executor) -> Ran | None:
        """Run steps for every row, as many as planned and then as many more as nobody needs to see to.

        Args:
            executor: has the threads for those lanes that this one does not run.

        Returns:
            what they have brought. None if some row has failed at some step: nothing has changed then, and the steps
            are to be run one by one.
        """
        chunk, count = self._plan.chunk, self._plan.count
        ranges = self._engine.lanes(self._row_count)
        numbers = range(len(ranges)) if len(ranges) > 1 else [None]
        lanes = [_Lane(number, rows, chunk.part(rows)) for number, rows in zip(numbers, ranges, strict=True)]
        side_by_side(executor, [partial(self._go, lane) for lane in lanes])
        if any(lane.failed_count for lane in lanes) and not any(lane.tokens for lane in lanes):
            return self._run_one_by_one(chunk.steps(0, 1)) if count == 1 else None
        counts, committed = np.zeros((2, self._row_count), np.int64)
        for lane in lanes:
            some = slice(lane.rows.start, lane.rows.stop)
            counts[some], committed[some] = lane.taken, lane.committed
        return Ran(
            counts,
            committed,
            self._results(lanes),
            [lane.rows for lane in lanes if lane.last is not None],
            failed_count=max(lane.failed_count for lane in lanes),
        )

    def _go(self, lane: _Lane) -> None:
        """Take a lane through the turn."""
        count = self._plan.count
        try:
            while count:
                count = self._run(lane, count)
        finally:
            self._over = True

    def _run(self, lane: _Lane, count: int) -> int:
        """Run a lane's next steps; how many are to follow. Its last run is not committed."""
        if lane.last is not None:
            self._engine.commit(lane.rows)
            lane.tokens.append(lane.last.tokens.copy())
            lane.chunk.go_on(lane.taken, lane.tokens[-1][:, -1])
        chunk, started = lane.chunk.steps(lane.taken, lane.taken + count), time.perf_counter()
        try:
            lane.last = self._engine.run(lane.rows, chunk, lane=lane.number)
        except EngineError:
            lane.last, lane.failed_count = None, count
            return 0
        now = time.perf_counter()
        self._pace.note(self._row_count, count, now - started)
        lane.taken += count
        return self._following(lane, lane.last, now)

    def _following(self, lane: _Lane, last: Results, now: float) -> int:
        """How many steps a lane takes next; none if the turn is over."""
        plan = self._plan
        count = self._pace.step_count(self._row_count, plan.most - lane.taken, plan.available, exact=plan.exact)
        if self._over or lane.taken > plan.quiet or lane.taken + count > len(plan.chunk) or now >= plan.until:
            return 0
        end_tokens = self._end_tokens[lane.rows.start : lane.rows.stop]
        if self._interrupted() or last.failed.any() or (last.tokens == end_tokens).any():
            return 0
        return count

    def _results(self, lanes: list[_Lane]) -> Results:
        """What all lanes have brought."""
        lasts = [lane.last for lane in lanes if lane.last is not None]
        if not self._plan.quiet:
            return lasts[0] if len(lasts) == 1 else _beside(lasts)
        shape = (self._row_count, max(lane.taken for lane in lanes))
        tokens, failed = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        for lane in lanes:
            of_lane = lane.tokens if lane.last is None else [*lane.tokens, lane.last.tokens]
            some = slice(lane.rows.start, lane.rows.stop)
            if of_lane:
                tokens[some, : lane.taken] = np.concatenate(of_lane, axis=1)
            if lane.last is not None:
                failed[some, lane.committed : lane.taken] = lane.last.failed
        return Results({}, tokens, failed)

    def _run_one_by_one(self, step: Chunk) -> Ran:
        """A step of many rows has failed: find out whose fault it is, so that the others go on."""
        count = self._row_count
        joined = Results({}, np.zeros((count, 1), np.int64), np.zeros((count, 1), np.bool_))
        told: dict[str, NDArray[np.float32]] = {}
        failures: dict[int, EngineError] = {}
        for row in range(count):
            rows = range(row, row + 1)
            try:
                alone = self._engine.run(rows, step.part(rows))
            except EngineError as error:
                failures[row] = error
                continue
            _place(alone.outputs, row, joined.outputs, count)
            _place(alone.states, row, joined.states, count)
            numbers = {"logits": alone.logits, "log_probabilities": alone.log_probabilities}
            _place({name: values for name, values in numbers.items() if values is not None}, row, told, count)
            if alone.tokens.size:
                joined.tokens[row], joined.failed[row] = alone.tokens[0], alone.failed[0]
        results = replace(joined, logits=told.get("logits"), log_probabilities=told.get("log_probabilities"))
        return Ran(np.ones(count, np.int64), np.zeros(count, np.int64), results, [range(count)], failures)


def _beside(several: list[Results]) -> Results:
    """What runs of the same steps of rows that follow each other have brought."""
    first = several[0]

    def joined(name: str) -> NDArray[Any] | None:
        return None if getattr(first, name) is None else np.concatenate([getattr(one, name) for one in several])

    return Results(
        {name: np.concatenate([one.outputs[name] for one in several]) for name in first.outputs},
        np.concatenate([one.tokens for one in several]),
        np.concatenate([one.failed for one in several]),
        logits=joined("logits"),
        log_probabilities=joined("log_probabilities"),
        states={name: np.concatenate([one.states[name] for one in several]) for name in first.states},
    )


def _place(values: Arrays, row: int, joined: dict[str, NDArray[Any]], count: int) -> None:
    """Copy one row's arrays [1, ...] to its place among those of all rows, [count, ...]."""
    for name, value in values.items():
        joined.setdefault(name, np.zeros((count, *value.shape[1:]), value.dtype))[row] = value[0]
