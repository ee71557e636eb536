"""What an iteration runs: prompts alone, or steps of all rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from elman_server.engine import DEFAULT_OUTPUTS, Chunk, Engine
from elman_server.scheduling.costs import StepCosts
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.rows.horizon import Horizon, horizon, next_due, prefill_steps, prefillable
from elman_server.scheduling.rows.inputs import RowInputs
from elman_server.scheduling.rows.pending import PendingTokens
from elman_server.scheduling.rows.table import RowTable


@dataclass(frozen=True)
class Prefill:
    """Some rows read their prompts alone.

    Attributes:
        rows: the rows.
        count: the number of steps.
    """

    rows: range
    count: int


@dataclass(frozen=True)
class Schedule:
    """Steps of all rows: one run, and further runs as long as no row needs attention.

    Attributes:
        chunk: the steps, as many as the iteration may take.
        count: how many of them the first run takes.
        horizon: how far the rows can run.
        available: the numbers of steps of a run.
        until: when a row is due, by `time.perf_counter`: no further run starts then.
    """

    chunk: Chunk
    count: int
    horizon: Horizon
    available: Sequence[int]
    until: float = 0.0

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return len(self.chunk.uniforms)

    def next_count(self, costs: StepCosts, taken: int, now: float) -> int:
        """Returns how many steps follow in another run after `taken` steps; 0: none."""
        if taken >= len(self.chunk) or now >= self.until:
            return 0
        useful = self.horizon.useful - taken
        count = costs.run_length(self.row_count, useful, self.available)
        return count if taken + count <= len(self.chunk) else 0


class Planner:
    """Decides what an iteration runs.

    Args:
        engine: says which numbers of steps it can run.
        policy: the thresholds.
        costs: how long steps take.
        table: the rows.
        pending: their coalesced tokens.
        inputs: builds the inputs of runs.
    """

    def __init__(
        self,
        engine: Engine,
        policy: SchedulingPolicy,
        costs: StepCosts,
        table: RowTable,
        pending: PendingTokens,
        inputs: RowInputs,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._costs = costs
        self._table = table
        self._pending = pending
        self._inputs = inputs

    def single_step(self, others_wait: bool) -> Schedule:
        """One step of all rows."""
        return Schedule(self._inputs.chunk(1), 1, horizon(self._table, others_wait), (1,))

    def plan(self, others_wait: bool) -> Schedule | Prefill:
        """Decide what runs next.

        Args:
            others_wait: whether requests wait for a slot.
        """
        table, costs, now = self._table, self._costs, time.perf_counter()
        rows = prefillable(table)
        if rows is not None:
            count = self._prefill_length(rows, now)
            if count:
                return Prefill(rows, count)
        ahead = horizon(table, others_wait)
        available = self._engine.step_counts_for(self._inputs.filtered, table.selection)
        count = costs.run_length(len(table), ahead.useful, available)
        if count > ahead.quiet:
            count = self._cut_for_first_token(count, ahead, available, now)
            return Schedule(self._inputs.chunk(count), count, ahead, available)
        until = next_due(table)
        if rows is not None:
            until = min(until, now + self._policy.prefill_interval_seconds)
        ratio = self._policy.prepared_steps_ratio
        seconds = ratio * (until - now) if ratio else 0.0  # `until` may be infinite.
        expected = count + costs.steps_within(len(table), seconds)
        total = max(count, min(expected, ahead.quiet + 1, ahead.useful, self._pending.room))
        return Schedule(self._inputs.chunk(total), count, ahead, available, until)

    def _prefill_length(self, rows: range, now: float) -> int:
        """How many steps `rows` prefill alone; 0: none for now."""
        available = self._engine.step_counts_for(False, DEFAULT_OUTPUTS)
        useful = prefill_steps(self._table, rows)
        return self._costs.prefill_length(len(rows), len(self._table), useful, available, now)

    def _cut_for_first_token(self, count: int, ahead: Horizon, available: Sequence[int], now: float) -> int:
        """A run ends where a row has its first token. It costs the others about a step, which is taken from the time
        for prefilling."""
        if not self._policy.first_token_cut or ahead.first_token is None or ahead.first_token >= count:
            return count
        shorter = self._costs.run_length(len(self._table), ahead.first_token, available)
        if ahead.first_token <= shorter < count and self._costs.take_step_from_budget(len(self._table), now):
            return shorter
        return count
