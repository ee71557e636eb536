"""How far the rows can run before one of them needs attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import DEFAULT_OUTPUTS
from elman_server.scheduling.rows.table import RowTable
from elman_server.scheduling.sequence import Beams, Generation


@dataclass(frozen=True)
class Horizon:
    """The numbers of steps after which something happens.

    Attributes:
        useful: how many steps are of use.
        quiet: after this many steps, and not before, a row may need attention, unless one chooses its end token. 0: a
            row needs attention after every run.
        first_token: after how many steps a row that reads its prompt generates its first token; None: none reads one.
    """

    useful: int
    quiet: int
    first_token: int | None


def horizon(table: RowTable, others_wait: bool) -> Horizon:
    """How far the rows can run.

    Args:
        table: the rows, one at least.
        others_wait: whether requests wait for a slot.
    """
    records = table.records
    prompt_left = np.maximum(records["forced_end"] - records["position"], 0)
    reading = prompt_left[records["generates"] & (prompt_left > 0)]
    first_token = int(reading.min()) if reading.size else None
    return Horizon(_useful_steps(table, prompt_left, others_wait), _quiet_steps(table), first_token)


def _useful_steps(table: RowTable, prompt_left: NDArray[np.int64], others_wait: bool) -> int:
    """How many steps are of use before another sequence is to run, or a state, an output or a token is needed."""
    records = table.records
    left = records["end"] - records["position"]
    # The first slot that becomes free is given to one of those that wait.
    useful = [int(left.min() if others_wait else left.max())]
    if prompt_left.all():  # No row generates yet: the first token is emitted as early as possible.
        useful.append(int(prompt_left.min()))
    keeps = records["keeps_state"]
    if keeps.any():  # A row whose end is known in advance need not be replayed.
        useful.append(int(left[keeps].min()))
    needs_logits = records["needs_logits"]
    if needs_logits.any():  # The logits are those of a run's last step.
        useful.append(max(int(prompt_left[needs_logits].min()), 1))
    useful.append(int((records["halt_at"] - records["position"]).min()))  # The state at that very position is needed.
    return min(useful)


def _quiet_steps(table: RowTable) -> int:
    records = table.records
    if table.selection != DEFAULT_OUTPUTS or table.count(Generation) < len(records) or records["stops"].any():
        return 0
    until = np.minimum(np.minimum(records["end"], records["snapshot_at"]), records["halt_at"])
    # The first token of a sequence is emitted immediately.
    reading = records["position"] < records["forced_end"]
    until = np.where(reading, np.minimum(until, records["forced_end"]), until)
    return int((until - records["position"]).min())


def next_due(table: RowTable) -> float:
    """The time at which tokens are to be emitted or a time limit passes, by `time.perf_counter`."""
    records = table.records
    due = np.where(records["position"] < records["forced_end"], np.inf, records["due"])
    return float(np.minimum(due, records["time_limit"]).min())


def prefillable(table: RowTable) -> range | None:
    """The rows that can read their prompts without the others.

    Returns:
        The longest range of adjacent rows that have more than one token of their prompt to read, while others
        generate; None if there is none.
    """
    records = table.records
    reads = records["generates"] & (records["position"] + 1 < records["forced_end"])
    if not reads.any() or reads.all() or table.count(Beams):
        return None
    edges = np.flatnonzero(np.diff(reads, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return range(int(starts[longest]), int(stops[longest]))


def prefill_steps(table: RowTable, rows: range) -> int:
    """How many steps `rows` can take before one comes to the last token of its prompt, or to where its state is needed;
    those steps are taken with all rows."""
    records = table.records[rows.start : rows.stop]
    return int((np.minimum(records["forced_end"], records["halt_at"]) - 1 - records["position"]).min())
