"""The thresholds of scheduling, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from elman_server.engine import EnginePolicy


@dataclass(frozen=True)
class SchedulingPolicy:
    """Every threshold of scheduling. What each heuristic is worth is measured by `python -m benchmarks ablation`.

    Attributes:
        run_seconds: how long one run of the model may take, as far as a single step does not take longer. A new request
            waits for one run at most.
        prepared_steps_ratio: for how many times the expected steps inputs are prepared, where one run may follow
            another without an iteration in between. A row partition that has a core for itself takes more than
            expected. 0: no run follows another.
        flush_interval_seconds: how long the tokens of a stream are coalesced before they are emitted, the first one
            excepted. A message costs as much as the arithmetic of many tokens.
        messages_per_second: about how many messages all streams of a model are sent together. With more streams their
            tokens are coalesced for longer.
        emission_share: the share of the time that emitting may keep the model waiting. Where it takes more, tokens are
            coalesced for longer. 0: no limit.
        longest_flush_interval_seconds: `emission_share` lengthens the interval up to here, so that text still flows.
        prefill_share: the share of the time in which requests that still read their prompts may run alone, ahead of
            those that generate. 0: never.
        prefill_budget_runs: how many runs' time of that share may be saved up.
        prefill_interval_runs: after how many runs' time the model looks again for requests to prefill.
        prefill_speedup: how much faster prefilling alone has to be than sharing the steps of all rows.
        first_token_cut: whether a run ends where a row has its first token, at the expense of that share.
        estimate_decay: the factor by which a rejected estimate of a prefill run shrinks, so that it is tried again.
        measurement_weight: the weight of a measurement against the estimate before it.
        arrival_patience_seconds: how long the running requests wait while new ones keep arriving.
        crowd_patience_seconds: the same where more requests wait than run.
        time_slice_seconds: how long a sequence keeps its slot while callers without one wait, where there are more
            callers than slots.
        slow_constraint_seconds: a grammar that needs more time of a processor to add a token, or to find what may
            follow, is advanced apart from the others, and its sequence has no slot meanwhile. See
            `python -m benchmarks abuse`.
        suspect_constraints_seconds: where all grammars of a run together need more time, one of them may be slow, and
            each is advanced apart once to find out which.
        suspect_constraints_row_seconds: how much is added to that for each row.
        suspect_interval_seconds: how long none is suspected again, unless one was slow.
        encoded_positions: about how many positions of sources are encoded between two runs.
        tree_flush_seconds: how long finished trees are coalesced.
        tree_flush_share: they are emitted earlier when they are this share of the running trees.
        engine: the thresholds of the engine.
    """

    run_seconds: float = 0.005
    prepared_steps_ratio: float = 2.0
    flush_interval_seconds: float = 0.04
    messages_per_second: float = 1000.0
    emission_share: float = 0.025
    longest_flush_interval_seconds: float = 0.16
    prefill_share: float = 0.05
    prefill_budget_runs: float = 4.0
    prefill_interval_runs: float = 8.0
    prefill_speedup: float = 2.0
    first_token_cut: bool = True
    estimate_decay: float = 0.98
    measurement_weight: float = 0.3
    arrival_patience_seconds: float = 0.01
    crowd_patience_seconds: float = 0.08
    time_slice_seconds: float = 0.5
    slow_constraint_seconds: float = 0.0003
    suspect_constraints_seconds: float = 0.005
    suspect_constraints_row_seconds: float = 0.0001
    suspect_interval_seconds: float = 1.0
    encoded_positions: int = 512
    tree_flush_seconds: float = 0.005
    tree_flush_share: float = 0.25
    engine: EnginePolicy = field(default_factory=EnginePolicy)

    @property
    def prefill_interval_seconds(self) -> float:
        """How long the model runs before it looks again for requests to prefill."""
        return self.prefill_interval_runs * self.run_seconds

    def flush_interval(self, streams: int, emission_seconds: float) -> float:
        """Returns for how many seconds each of `streams` coalesces its tokens.

        It is the shortest interval, doubled as often as necessary, so that the times at which streams are written to
        coincide, however many there are.

        Args:
            streams: the number of streams.
            emission_seconds: how long emitting to that many keeps the model waiting.
        """
        least = max(self.flush_interval_seconds, 1 / self.messages_per_second)
        interval = streams / self.messages_per_second
        if self.emission_share:
            interval = max(interval, min(emission_seconds / self.emission_share, self.longest_flush_interval_seconds))
        return math.ldexp(least, max(0, math.ceil(math.log2(interval / least))))
