"""The heuristics of the scheduler and the engine, and the policy that disables each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from elman_server import configuration, loading
from elman_server.scheduling import SchedulingPolicy

_Change = Callable[[SchedulingPolicy], SchedulingPolicy]


@dataclass(frozen=True)
class Variant:
    """The server without one heuristic.

    Attributes:
        heuristic: description of the disabled heuristic.
        change: returns the policy with the heuristic disabled.
    """

    heuristic: str
    change: _Change

    def apply(self) -> None:
        """Make this process load models with the changed policy, and start with the same core as all variants."""
        loading._FIRST_CORE = 0
        default = configuration.scheduling_policy
        setattr(loading, default.__name__, lambda settings: self.change(default(settings)))


def _policy(**changes: Any) -> _Change:
    return lambda policy: replace(policy, **changes)


def _engine(**changes: Any) -> _Change:
    return lambda policy: replace(policy, engine=replace(policy.engine, **changes))


VARIANTS = {
    "none": Variant("nothing: differences by chance", lambda policy: policy),
    "chained": Variant("runs that follow one another within an iteration", _policy(prepared_steps_ratio=0.0)),
    "slack": Variant("inputs for more steps than expected", _policy(prepared_steps_ratio=1.0)),
    "prefill": Variant("runs that only prefill", _policy(prefill_share=0.0)),
    "first-token-cut": Variant("runs that end at a first token", _policy(first_token_cut=False)),
    "estimate-decay": Variant("trying rejected prefill runs again", _policy(estimate_decay=1.0)),
    "arrivals": Variant(
        "waiting for requests that keep arriving", _policy(arrival_patience_seconds=0.0, crowd_patience_seconds=0.0)
    ),
    "crowd": Variant(
        "waiting longer for a crowd", _policy(crowd_patience_seconds=SchedulingPolicy.arrival_patience_seconds)
    ),
    "emission-share": Variant("coalescing by the cost of emitting", _policy(emission_share=0.0)),
    "partitions": Variant("row partitions", _engine(partition_speedup=1e9)),
    "pinned-threads": Variant("threads pinned to cores", _engine(pin_threads=False)),
}
# Heuristics that made no difference beyond chance and were deleted; their last figures are in the results.
DELETED = {
    "overshoot": "runs that slightly exceed the useful steps",
    "first-token-patience": "delaying tokens for a new request",
    "asymmetric-estimates": "estimates that trust fast runs more",
    "spinning": "short spinning within a run",
}
