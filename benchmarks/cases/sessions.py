"""The cost and benefit of sessions: durability, idle sessions and cached prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.cases import session_durability, session_idle, session_prefixes
from benchmarks.cases.model import prepare_model
from benchmarks.cases.session_options import CASES, SessionOptions
from benchmarks.processes.machine import describe
from benchmarks.references.graphs import Sizes

Rows = list[dict[str, Any]]
_MEASURE = {
    "durability": session_durability.measure_durability,
    "idle": session_idle.measure_idle,
    "prefix": session_prefixes.measure_prefixes,
}
_STEPS = {
    "durability": session_durability.step_count,
    "idle": session_idle.step_count,
    "prefix": session_prefixes.step_count,
}


def measure_sessions(options: SessionOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every case.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    advance("making the model")
    model = prepare_model(Sizes(), options.precisions)
    rows = [row for case in _chosen(options) for row in _MEASURE[case](model, options, advance)]
    about = {"server_options": list(options.server_options), **describe()}
    return [row | about for row in rows]


def step_count(options: SessionOptions) -> int:
    """Return how many times `measure_sessions` calls `advance`."""
    return 1 + sum(_STEPS[case](options) for case in _chosen(options))


def _chosen(options: SessionOptions) -> list[str]:
    return [case for case in CASES if case in options.cases]
