"""An exception at any point of a scheduler, its batch or its engine ends one sequence, or those of the run in which it
is raised, with a named error. Every sequence ends once, and what it has received is what it gets alone. What follows
is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from elman_server.decoding.beams import BeamParams, BeamSearch
from elman_server.decoding.constraints import Constraint, ConstraintKind, Grammars
from elman_server.decoding.constraints.matching import Matcher
from elman_server.decoding.host.shaped_rows import ShapedRows
from elman_server.decoding.host.shaping import Shaping
from elman_server.scheduling import (
    Beams,
    Emission,
    Event,
    Failed,
    Generation,
    Reading,
    Receiver,
    SamplingParams,
    Scheduler,
    Sequence,
    Source,
)
from elman_server.scheduling.admission import Admission
from elman_server.scheduling.costs import StepCosts
from elman_server.scheduling.rows.batch import RowBatch
from elman_server.scheduling.rows.endings import Endings
from elman_server.scheduling.rows.execution import Execution
from elman_server.scheduling.rows.host_sampler import HostSampler
from elman_server.scheduling.rows.inputs import RowInputs
from elman_server.scheduling.rows.pending import PendingTokens
from elman_server.scheduling.rows.planning import Planner
from elman_server.scheduling.rows.preemption import RowPreemption
from elman_server.scheduling.rows.search import BeamRows
from elman_server.scheduling.rows.table import RowTable
from elman_server.scheduling.waiting import WaitingQueue
from tests.support.amount import examples
from tests.support.events import content, received
from tests.support.fake_engine import LETTERS, NAN, POISON, FakeEngine, continuation
from tests.support.injection import DefectError, nth, points_of, raising
from tests.support.scheduling import (
    Inbox,
    deliver_events,
    generation,
    inbox,
    make_policy,
    make_scheduler,
    reading,
    until_running,
)

GRAMMARS = Grammars([None, *(letter.encode() for letter in LETTERS[1:])], None)
CAPACITY = 7
THREADS = ("scheduler", "partitions", "grammars")


class NeverStops:
    def feed(self, tokens: list[int]) -> int | None:
        return None


def sampled(**changes: Any) -> Generation:
    options = {name: changes.pop(name) for name in ("stop", "report_count", "keep_state", "source") if name in changes}
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=7, **changes)
    return Generation(np.array([1, 2]), Inbox(), params=params, **options)


def search(**changes: Any) -> Beams:
    return Beams(np.array([1, 2]), Inbox(), params=BeamParams(2, 2, 5, None), **changes)


GRAMMAR = GRAMMARS.compile(Constraint(ConstraintKind.REGEX, "[a-i]*"))


KINDS: dict[str, Callable[[], Sequence]] = {
    "long": lambda: generation([1], 24),
    "longer": lambda: generation([2] * 20, 20),
    "constrained": lambda: sampled(grammar=GRAMMAR),
    "shaped": lambda: sampled(shaping=Shaping(repetition_penalty=1.5)),
    "stop sequence": lambda: sampled(stop=NeverStops()),
    "reports": lambda: sampled(report_count=2),
    "replayed": lambda: generation([1, 2], 20, end_token=continuation([1, 2], 9)[4], keep_state=True),
    "snapshots": lambda: generation([1], 12, snapshot_steps=2),
    "reading": lambda: reading([1, 2, 3, 4, 5], every_step=True, keep_state=True),
    "last output": lambda: reading([1, 2, 3]),
    "search": search,
    "shaped search": lambda: search(shaping=Shaping(repetition_penalty=1.5)),
    "encoded": lambda: sampled(source=Source(np.array([3, 4]))),
    "failing": lambda: generation([1, POISON], 5),
    "not a number": lambda: generation([1, NAN], 5),
    "too late": lambda: generation([1], 9, time_limit=0.0),
}


def make_small_scheduler() -> Scheduler:
    policy = make_policy(time_slice_seconds=0.0, arrival_patience_seconds=0.0, crowd_patience_seconds=0.0)
    return make_scheduler(FakeEngine(capacity=CAPACITY), policy=policy)


def run_all(scheduler: Scheduler) -> dict[str, tuple[list[int], Event]]:
    """Run a sequence of each kind, of more callers than there are slots; some are paused for a while."""
    sequences = {name: make() for name, make in KINDS.items()}
    for number, sequence in enumerate(sequences.values()):
        sequence.caller = f"caller {number % 9}"
        scheduler.submit(sequence)
    scheduler.start()
    for name in ("long", "constrained", "shaped search"):
        scheduler.set_paused(sequences[name], paused=True)
    scheduler.set_paused(sequences["long"], paused=False)
    time.sleep(0.002)
    for name in ("constrained", "shaped search"):
        scheduler.set_paused(sequences[name], paused=False)
    found = {name: received(sequence) for name, sequence in sequences.items()}
    later = generation([3], 9)
    scheduler.submit(later)
    assert received(later)[0] == continuation([3], 9)
    deadline = time.monotonic() + 10
    while scheduler.running_count or scheduler.waiting_count:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for sequence in sequences.values():
        assert inbox(sequence).events.empty()
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Defects are logged, each with its traceback."""
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[list[int], object]]:
    """What each kind of sequence receives when it runs alone."""
    found = {}
    for name, make in KINDS.items():
        own, sequence = make_small_scheduler(), make()
        own.submit(sequence)
        own.start()
        tokens, end = received(sequence)
        own.stop()
        found[name] = tokens, content(end)
    return found


# What the test calls itself, what nothing calls here, and what is there to handle defects.
NO_POINTS = frozenset({
    "submit", "abort", "set_paused", "close", "stop", "start", "append_copy", "slot_count", "waiting_limit",
    "running_count", "Scheduler.waiting_count", "callers", "may_add", "is_interrupted", "_loop", "_do", "_emit", "lose",
    "abort_all_of", "_give_up", "RowPreemption.expired", "take_step_from_budget", "_grow", "_retry_mask",
    "_note_no_text", "_complexity", "_renew", "BeamSearch.tokens_of", "_choose_alone", "_needs_attention",
    "is_complete", "HostSampler._refuse",
})  # fmt: skip
POINTS = points_of(
    Scheduler, Admission, WaitingQueue, RowBatch, RowPreemption, Planner, StepCosts, RowTable, RowInputs, PendingTokens,
    HostSampler, ShapedRows, Execution, Endings, BeamRows, BeamSearch, Matcher, Reading, Generation, FakeEngine,
    leave_out=NO_POINTS,
)  # fmt: skip
# What is done for all rows of a run together: where it raises, the sequences of the run fail.
JOINT = {
    Admission: {"waiting_count", "take_aborted"},
    RowBatch: {
        "admit", "schedule", "run", "update", "_release", "_prefill", "_sample", "_choose", "_reports", "_replay",
        "_collect", "_due_events",
    },
    StepCosts: {"emission_seconds", "record_run", "record_prefill", "_learn"},
    RowTable: {
        "release", "move", "clear", "count", "_count", "end_tokens", "rows_needing_logits", "progress", "advance",
    },
    PendingTokens: {"add", "due_rows"},
    HostSampler: {"prepare", "choose", "_take_allowed", "_find_allowed", "_accept"},
    ShapedRows: {"note"},
    Execution: {"run", "_run_partition", "_run", "_join", "_run_rows_alone", "committed"},
    Endings: {"find", "_find_end_tokens"},
    BeamRows: {"advance", "branch"},
    RowPreemption: {"preempt"},
    FakeEngine: {"divide", "commit"},
}  # fmt: skip
NUMBERS = [1, 2, 5]  # which call of it raises
CASES = [
    (owner, name, number)
    for index, (owner, name) in enumerate(POINTS)
    for number in examples([NUMBERS[index % len(NUMBERS)]], everything=NUMBERS)
]


@pytest.mark.parametrize(("owner", "name", "number"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_defect_ends_one_sequence_or_those_of_its_run(
    alone: dict[str, tuple[list[int], object]], owner: type, name: str, number: int
) -> None:
    own = make_small_scheduler()
    with raising(owner, name, nth(number), threads=THREADS) as injection:
        try:
            found = run_all(own)
        finally:
            own.stop()
    assert injection.raised or injection.calls < number
    failed = [kind for kind, (_, end) in found.items() if isinstance(end, Failed) and content(end) != alone[kind][1]]
    for kind, (tokens, end) in found.items():
        expected, expected_end = alone[kind]
        if kind in failed:
            assert isinstance(end, Failed)
            assert str(end.error) in {"internal error", "the model failed on this input"}
            assert tokens == expected[: len(tokens)], kind
        else:
            assert (tokens, content(end)) == (expected, expected_end), kind
    assert len(failed) <= (CAPACITY if name in JOINT.get(owner, set()) else 1), failed


def test_events_that_cannot_be_delivered_end_the_sequences_they_are_for(
    alone: dict[str, tuple[list[int], object]],
) -> None:
    sequences = {name: make() for name, make in KINDS.items() if name not in {"long", "snapshots"}}
    victims = {name: make() for name, make in KINDS.items() if name in {"long", "snapshots"}}
    lost: set[Receiver] = {victim.receiver for victim in victims.values()}

    def deliver(emissions: list[Emission]) -> None:
        """Deliver all events or none."""
        if any(receiver in lost and not isinstance(event, Failed) for receiver, event in emissions):
            raise DefectError
        deliver_events(emissions)

    own = make_scheduler(FakeEngine(capacity=16), policy=make_policy(), deliver=deliver)
    for sequence in (*victims.values(), *sequences.values()):
        own.submit(sequence)
    own.start()
    try:
        for victim in victims.values():
            tokens, end = received(victim)
            assert (tokens, content(end)) == ([], "internal error")
        for name, sequence in sequences.items():
            tokens, end = received(sequence)
            assert (tokens, content(end)) == alone[name], name
        until_running(own, 0)
        assert all(inbox(victim).events.empty() for victim in victims.values())
    finally:
        own.stop()
