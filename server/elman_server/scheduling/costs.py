"""What steps and emissions cost, learned while the model runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from elman_server.scheduling.policy import SchedulingPolicy

_Key = TypeVar("_Key")


class StepCosts:
    """Estimates of how long steps, prefill runs and emissions take, and the time that prefilling alone may take.

    Estimates are kept by the power of two that a number of rows falls below.

    Args:
        policy: the thresholds.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._step_seconds: dict[int, float] = {}
        self._emission_seconds: dict[int, float] = {}
        self._prefill_seconds: dict[tuple[int, int], float] = {}  # also by the number of steps
        self._budget_seconds, self._budget_time = 0.0, 0.0  # what prefilling may take, and the time it was updated

    def step_seconds(self, rows: int) -> float:
        """Returns the seconds of one step of `rows` rows; infinite before the first measurement."""
        return self._step_seconds.get(rows.bit_length(), math.inf)

    def emission_seconds(self, streams: int) -> float:
        """Returns the seconds for which emitting to `streams` streams keeps the model waiting; 0 if unknown."""
        return self._emission_seconds.get(streams.bit_length(), 0.0)

    def record_run(self, rows: int, steps: int, seconds: float) -> None:
        """Learn that `steps` steps of `rows` rows took `seconds`."""
        self._learn(self._step_seconds, rows.bit_length(), seconds / steps)

    def record_emission(self, streams: int, seconds: float) -> None:
        """Learn that emitting to `streams` streams kept the model waiting for `seconds`."""
        self._learn(self._emission_seconds, streams.bit_length(), seconds)

    def record_prefill(self, rows: int, steps: int, seconds: float) -> None:
        """Learn that `rows` rows alone took `seconds` for `steps` steps, which is taken from the budget."""
        self._learn(self._prefill_seconds, (rows.bit_length(), steps), seconds)
        self._budget_seconds -= seconds

    def run_length(self, rows: int, useful: int, available: Sequence[int]) -> int:
        """Returns how many steps one run takes: as many as fit into its time and are of use.

        Args:
            rows: the number of rows.
            useful: the number of steps that are of use.
            available: the numbers of steps to choose from, ascending; the first where the cost is unknown.
        """
        seconds = self.step_seconds(rows)
        fitting = [count for count in available if count <= useful and count * seconds <= self._policy.run_seconds]
        return fitting[-1] if fitting else available[0]

    def steps_within(self, rows: int, seconds: float) -> int:
        """Returns how many steps of `rows` rows fit into `seconds`; 0 if their cost is unknown."""
        step_seconds = self.step_seconds(rows)
        return 0 if math.isinf(step_seconds) else max(0, int(min(seconds, 3600.0) / step_seconds))

    def prefill_length(self, rows: int, all_rows: int, useful: int, available: Sequence[int], now: float) -> int:
        """Returns how many steps `rows` rows prefill alone; 0: none for now.

        The others wait meanwhile, so it has to fit into the budget, and it has to be worth it: each of these steps is
        one that the rows need not take together with all others.

        Args:
            rows: how many rows prefill.
            all_rows: how many rows run.
            useful: how many steps they can take before one needs its output.
            available: the numbers of steps of a run, ascending.
            now: the time.
        """
        self._accrue(now)
        shared = self.step_seconds(all_rows)
        budget = min(self._budget_seconds, self._policy.run_seconds)
        for count in reversed(available):
            if count <= useful and self._estimate_prefill(rows, count, shared * rows / all_rows, shared) <= budget:
                return count
        return 0

    def take_step_from_budget(self, rows: int, now: float) -> bool:
        """Take one step of `rows` rows from the prefill budget, if it holds that much."""
        self._accrue(now)
        seconds = self.step_seconds(rows)
        if seconds > self._budget_seconds:
            return False
        self._budget_seconds -= seconds
        return True

    def _accrue(self, now: float) -> None:
        policy = self._policy
        self._budget_seconds += policy.prefill_share * (now - self._budget_time)
        self._budget_seconds = min(self._budget_seconds, policy.prefill_budget_runs * policy.run_seconds)
        self._budget_time = now

    def _estimate_prefill(self, rows: int, steps: int, guess: float, shared: float) -> float:
        """Returns the seconds of a prefill run; infinite where it is too long or not worth it.

        Args:
            rows: the number of rows.
            steps: the number of steps.
            guess: seconds of a step before the first measurement.
            shared: seconds of a step of all rows.
        """
        known, key = self._prefill_seconds, (rows.bit_length(), steps)
        seconds = known.get(key, guess * steps)
        if seconds <= self._policy.run_seconds and self._policy.prefill_speedup * seconds <= shared * steps:
            return seconds
        if key in known:  # One slow measurement must not decide for every later request.
            known[key] *= self._policy.estimate_decay
        return math.inf

    def _learn(self, known: dict[_Key, float], key: _Key, measured: float) -> None:
        """Move an estimate towards a measurement."""
        before = known.get(key, measured)
        known[key] = before + self._policy.measurement_weight * (measured - before)
