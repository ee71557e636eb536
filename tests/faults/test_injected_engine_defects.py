"""An exception anywhere in an engine on onnxruntime, its encoder or its trees ends the sequences of the run at most,
with a named error; all others are to the byte what they are alone, and what follows is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from elman_bundle import Bundle
from elman_server.decoding.beams import BeamParams
from elman_server.engine import OnnxTreeEngine, Opener, ProviderChoice
from elman_server.engine.constants import Constants
from elman_server.engine.encoder import Encoder
from elman_server.engine.graphs import Graph, StepGraphs
from elman_server.engine.memory import HostBuffer
from elman_server.engine.onnx import OnnxEngine
from elman_server.engine.rows import RowStates
from elman_server.scheduling import (
    Beams,
    Failed,
    Generation,
    Reading,
    RowBatch,
    SamplingParams,
    Scheduler,
    Sequence,
    Source,
    Tree,
    TreeBatch,
)
from tests.support.amount import examples
from tests.support.encoder_models import SOUNDS, translator_bundle
from tests.support.engines import make_engine
from tests.support.events import content, received
from tests.support.injection import nth, points_of, raising
from tests.support.scheduling import Inbox, deliver_events, inbox, make_policy
from tests.support.tree_sequences import tree_sequence
from tests.support.trees import random_tree

SLOTS = 5
NUMBERS = [1, 2, 5]  # which call raises
Received = dict[str, tuple[list[int], object]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Defects are logged, each with its traceback."""
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def engine() -> OnnxEngine:
    return make_engine(translator_bundle(), SLOTS)


@pytest.fixture(scope="module")
def tree_engine(tree_bundles: Mapping[str, Bundle]) -> OnnxTreeEngine:
    return OnnxTreeEngine(tree_bundles["child-sum"], capacity=16, opener=Opener(ProviderChoice.CPU, 1))


def source(length: int) -> Source:
    return Source(np.arange(length) % 20 + 1)


def generation(length: int, **changes: Any) -> Generation:
    params = SamplingParams(
        temperature=1.0, seed=length, max_tokens=4 * length, end_token=changes.pop("end_token", None)
    )
    return Generation(np.array([1]), Inbox(), source=source(length), params=params, **changes)


KINDS: dict[str, Callable[[], Sequence]] = {
    "short": lambda: generation(1),
    "with its state": lambda: generation(2, keep_state=True),
    "snapshots": lambda: generation(3, snapshot_steps=3),
    "ending": lambda: generation(4, end_token=5, keep_state=True),
    "long": lambda: generation(5),
    "search": lambda: Beams(np.array([1]), Inbox(), source=source(6), params=BeamParams(2, 2, 5, None)),
    "reading": lambda: Reading(np.arange(3, 16), Inbox(), source=source(7), every_step=False, keep_state=True),
}  # fmt: skip


def row_scheduler(engine: OnnxEngine) -> Scheduler:
    policy = make_policy(time_slice_seconds=0.0, arrival_patience_seconds=0.0, crowd_patience_seconds=0.0)
    rows = RowBatch("translator", engine, policy, input_name="token", vocabulary_size=SOUNDS.size, label_output=None)
    return Scheduler("translator", rows, policy, waiting_limit=100, deliver=deliver_events)


TREES: dict[str, Callable[[], Sequence]] = {
    f"tree {number}": lambda number=number: tree_sequence(
        random_tree(number, 0, 4 * number), every_node=number % 2 == 0
    )  # type: ignore[misc]
    for number in range(1, 7)
}


def tree_scheduler(engine: OnnxTreeEngine) -> Scheduler:
    batch = TreeBatch("trees", engine, policy := make_policy(), label_output="logits")
    return Scheduler("trees", batch, policy, waiting_limit=100, deliver=deliver_events)


def run(scheduler: Scheduler, kinds: Mapping[str, Callable[[], Sequence]]) -> Received:
    """Run a sequence of each kind, of different callers; one is paused for a while. Another one follows."""
    sequences = {name: make() for name, make in kinds.items()}
    for name, sequence in sequences.items():
        sequence.caller = name
        scheduler.submit(sequence)
    scheduler.start()
    try:
        first = next(iter(sequences.values()))
        scheduler.set_paused(first, paused=True)
        time.sleep(0.001)
        scheduler.set_paused(first, paused=False)
        found = {name: received(sequence) for name, sequence in sequences.items()}
        deadline = time.monotonic() + 10
        while scheduler.running_count or scheduler.waiting_count:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert all(inbox(sequence).events.empty() for sequence in sequences.values())
        name, make = next(iter(kinds.items()))
        scheduler.submit(later := make())
        found["later"] = received(later)
    finally:
        scheduler.stop()
    return {name: (tokens, end) for name, (tokens, end) in found.items()}


def alone(make_scheduler: Callable[[], Scheduler], kinds: Mapping[str, Callable[[], Sequence]]) -> Received:
    """What each kind of sequence receives when it runs alone."""
    found: Received = {}
    for name, make in kinds.items():
        ((tokens, end), later) = run(make_scheduler(), {name: make}).values()
        assert content(end) == content(later[1])
        found[name] = tokens, content(end)
    return {**found, "later": next(iter(found.values()))}


@pytest.fixture(scope="module")
def rows_alone(engine: OnnxEngine) -> Received:
    return alone(lambda: row_scheduler(engine), KINDS)


@pytest.fixture(scope="module")
def trees_alone(tree_engine: OnnxTreeEngine) -> Received:
    return alone(lambda: tree_scheduler(tree_engine), TREES)


def check(found: Received, expected: Received, most: int) -> None:
    failed = [name for name, (_, end) in found.items() if isinstance(end, Failed)]
    for name, (tokens, end) in found.items():
        if isinstance(end, Failed):
            assert str(end.error) in {"internal error", "the model failed on this input"}
            assert tokens == expected[name][0][: len(tokens)], name
        else:
            assert (tokens, content(end)) == expected[name], name
    assert len(failed) <= most, failed
    assert "later" not in failed


def cases(*owners: type, leave_out: frozenset[str]) -> list[Any]:
    points = points_of(*owners, leave_out=leave_out)
    return [
        pytest.param(owner, name, number, id=f"{owner.__name__}-{name}-{number}")
        for index, (owner, name) in enumerate(points)
        for number in examples([NUMBERS[index % len(NUMBERS)]], everything=NUMBERS)
    ]


# Called by tests or while the model is loaded.
LOADING = frozenset(
    {"allow_steps", "fill_with_example", "example", "warm_up", "provider", "_new_buffer", "_together", "_single"}
)
# Between two runs, for all rows of a run.
JOINT = {"divide", "commit", "step_counts_for"}


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    cases(OnnxEngine, RowStates, StepGraphs, Graph, HostBuffer, Constants, Encoder, leave_out=LOADING),
)
def test_a_defect_of_the_engine(engine: OnnxEngine, rows_alone: Received, owner: type, name: str, number: int) -> None:
    scheduler = row_scheduler(engine)
    with raising(owner, name, nth(number), threads=("scheduler",)):
        found = run(scheduler, KINDS)
    check(found, rows_alone, SLOTS if name in JOINT else 1)


@pytest.mark.parametrize(
    ("owner", "name", "number"), cases(OnnxTreeEngine, TreeBatch, Tree, leave_out=LOADING | {"preemption", "_size"})
)
def test_a_defect_of_trees(
    tree_engine: OnnxTreeEngine, trees_alone: Received, owner: type, name: str, number: int
) -> None:
    scheduler = tree_scheduler(tree_engine)
    with raising(owner, name, nth(number), threads=("scheduler",)):
        found = run(scheduler, TREES)
    check(found, trees_alone, 6)
