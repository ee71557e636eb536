"""Tree batches in the scheduler with a fake engine whose outputs can be computed by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from elman_server.engine import NO_CHILD, NodeResults
from elman_server.errors import EngineError, ModelFailedError, ServerDrainingError
from elman_server.scheduling import (
    Deliver,
    Emission,
    Event,
    Failed,
    ReadingFinished,
    Scheduler,
    SchedulingPolicy,
    Tree,
    TreeBatch,
)
from elman_server.scheduling.trees.batch import _shares
from tests.support.scheduling import Inbox, deliver_events, inbox, until_running
from tests.support.tree_sequences import order_of, tree_sequence
from tests.support.trees import RandomTree, random_tree

MODULUS, LABELS = 1009, 7
POISON = 9  # a run with a node of this token fails


def value_of(token: int, children: list[int]) -> int:
    """Return the fake model's value of a node, which depends on the order of the children."""
    return (token + sum((place + 2) * child for place, child in enumerate(children))) % MODULUS


class FakeTreeEngine:
    """Implements `TreeEngine`. The state of a node is its value; the label is certainly the value modulo 7.

    Args:
        capacity: the largest number of nodes in a run.
        child_count: number of children of every inner node; 0 for any number.

    Attributes:
        gate: runs wait while it is cleared.
        runs: the number of nodes of every run.
        states: the kept states, by index.
    """

    provider = "cpu"

    def __init__(self, capacity: int = 16, child_count: int = 0) -> None:
        self.capacity, self.child_count = capacity, child_count
        self.gate = threading.Event()
        self.gate.set()
        self.runs: list[int] = []
        self.states: dict[int, int] = {}
        self.leaves: dict[int, int] = {}
        self._next = 0

    def run(self, tokens: NDArray[np.int64], children: NDArray[np.int64]) -> NodeResults:
        assert self.gate.wait(30)
        assert 0 < len(tokens) <= self.capacity
        assert children.shape[1] == self.child_count or (not self.child_count and children.shape[1])
        self.runs.append(len(tokens))
        if POISON in tokens:
            raise EngineError("poison")
        outputs = np.full((len(tokens), LABELS), -100.0, np.float32)
        places = []
        for row, (token, own) in enumerate(zip(tokens.tolist(), children.tolist(), strict=True)):
            below = [self.states[place] for place in own if place != NO_CHILD]
            assert own[len(below) :] == [NO_CHILD] * (len(own) - len(below))
            value = value_of(token, below)
            outputs[row, value % LABELS] = 0.0
            self._next += 1
            self.states[self._next] = value
            places.append(self._next)
            if not below:
                self.leaves.setdefault(token, self._next)
        return NodeResults(np.array(places), {"labels": outputs})

    def known(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self.leaves.get(token, NO_CHILD) for token in tokens.tolist()], np.int64)

    def release(self, places: NDArray[np.int64]) -> None:
        for place in places.tolist():
            if place not in self.leaves.values():
                del self.states[place]  # fails if it is not kept or was already released

    def release_all(self) -> None:
        self.states = {place: self.states[place] for place in self.leaves.values()}

    @property
    def kept_count(self) -> int:
        """The number of kept states, without the permanent ones."""
        return len(self.states) - len(self.leaves)


def make_tree_scheduler(
    engine: FakeTreeEngine, waiting_limit: int, deliver: Deliver, policy: SchedulingPolicy | None = None
) -> Scheduler:
    policy = policy or SchedulingPolicy()
    batch = TreeBatch("fake", engine, policy, label_output="labels")
    return Scheduler("fake", batch, policy, waiting_limit=waiting_limit, deliver=deliver)


@pytest.fixture
def engine() -> FakeTreeEngine:
    return FakeTreeEngine()


@pytest.fixture
def scheduler(engine: FakeTreeEngine) -> Iterator[Scheduler]:
    scheduler = make_tree_scheduler(engine, 100, deliver_events)
    scheduler.start()
    yield scheduler
    engine.gate.set()
    scheduler.stop()


def labels_of(tree: RandomTree) -> list[int]:
    """Return the expected label of every node."""
    values: dict[int, int] = {}
    for node in reversed(order_of(tree)[0]):
        values[node] = value_of(tree.tokens[node], [values[child] for child in tree.children[node]])
    return [values[node] % LABELS for node in range(len(tree.tokens))]


def labels_received(tree: Tree) -> list[int]:
    event = inbox(tree).events.get(timeout=10)
    assert isinstance(event, ReadingFinished), event
    labels: list[int] = event.outputs.argmax(axis=1).tolist()
    return labels


def without_poison(seed: int, children: int, size: int) -> RandomTree:
    tree = random_tree(seed, children, size)
    return RandomTree([token + (token == POISON) for token in tree.tokens], tree.children, tree.root)


@pytest.mark.parametrize("child_count", [0, 2])
def test_trees_that_arrive_and_finish_equal_single_trees(child_count: int) -> None:
    """There are more trees than slots and more nodes than the initial capacity; some request every node."""
    engine = FakeTreeEngine(capacity=8, child_count=child_count)
    scheduler = make_tree_scheduler(engine, 200, deliver_events)
    random = np.random.default_rng(1)
    trees = [without_poison(seed, child_count, int(random.choice([1, 4, 30, 400]))) for seed in range(60)]
    requests = [tree_sequence(tree, every_node=seed % 3 == 0) for seed, tree in enumerate(trees)]
    for one in requests[:30]:
        scheduler.submit(one)
    scheduler.start()
    for one in requests[30:]:
        time.sleep(random.random() * 0.003)
        scheduler.submit(one)
    for tree, one in zip(trees, requests, strict=True):
        labels = labels_of(tree)
        assert labels_received(one) == (labels if one.order is not None else [labels[tree.root]])
    until_running(scheduler, 0)
    scheduler.stop()
    assert engine.kept_count == 0
    assert max(engine.runs) == engine.capacity


@pytest.mark.parametrize(
    ("seconds", "expected_counts"), [(1000.0, [2, 2, 1, 1, 1, 1]), (0.0, [1, 1, 1, 1, 1, 1, 1, 1])]
)
def test_finished_trees_are_coalesced_up_to_a_quarter_of_the_running_ones(
    engine: FakeTreeEngine, seconds: float, expected_counts: list[int]
) -> None:
    """Eight chains of 1 to 8 nodes: one finishes in each iteration."""
    counts: list[int] = []

    def count(emissions: list[Emission]) -> None:
        if emissions:
            counts.append(len(emissions))
        deliver_events(emissions)

    scheduler = make_tree_scheduler(engine, 9, count, SchedulingPolicy(tree_flush_seconds=seconds))
    chains = [RandomTree([1] * size, [[node + 1] for node in range(size - 1)] + [[]], 0) for size in range(1, 9)]
    requests = [tree_sequence(chain) for chain in chains]
    for one in requests:
        scheduler.submit(one)
    scheduler.start()
    for chain, one in zip(chains, requests, strict=True):
        assert labels_received(one) == [labels_of(chain)[0]]
    scheduler.stop()
    assert counts == expected_counts


def test_failed_run_ends_only_the_tree_at_fault(scheduler: Scheduler, engine: FakeTreeEngine) -> None:
    engine.gate.clear()
    trees = [without_poison(seed, 0, 20) for seed in range(6)]
    bad = RandomTree([3, POISON, 4, 5], [[1, 2], [], [3], []], 0)
    requests = [tree_sequence(tree) for tree in [*trees[:3], bad, *trees[3:], bad]]
    for one in requests:
        scheduler.submit(one)
    engine.gate.set()
    for tree, one in zip([*trees[:3], bad, *trees[3:], bad], requests, strict=True):
        if tree is not bad:
            assert labels_received(one) == [labels_of(tree)[tree.root]]
            continue
        event = inbox(one).events.get(timeout=10)
        assert isinstance(event, Failed)
        assert isinstance(event.error, ModelFailedError)
    until_running(scheduler, 0)
    assert engine.kept_count == 0


@pytest.mark.parametrize("missing", ["show", "finished", "depths"])
def test_a_defect_ends_only_the_tree_that_meets_it(engine: FakeTreeEngine, missing: str) -> None:
    scheduler = make_tree_scheduler(engine, 100, deliver_events)
    others = [without_poison(seed, 0, 30) for seed in range(4)]
    trees = [tree_sequence(tree, every_node=True) for tree in others]
    victim = tree_sequence(without_poison(9, 0, 30), every_node=True)
    setattr(victim, missing, None)
    for tree in (*trees[:2], victim, *trees[2:]):
        scheduler.submit(tree)
    scheduler.start()
    end = inbox(victim).events.get(timeout=10)
    assert isinstance(end, Failed)
    assert str(end.error) == "internal error"
    assert [labels_received(tree) for tree in trees] == [labels_of(tree) for tree in others]
    until_running(scheduler, 0)
    assert engine.kept_count == 0
    scheduler.stop()


def test_aborted_tree_leaves_no_state(
    scheduler: Scheduler, engine: FakeTreeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    staying, leaving = without_poison(1, 0, 200), without_poison(2, 0, 3000)
    requests = [tree_sequence(staying), tree_sequence(leaving, every_node=True)]
    run = engine.run

    def aborting(tokens: NDArray[np.int64], children: NDArray[np.int64]) -> NodeResults:
        if len(engine.runs) == 20:
            scheduler.abort(requests[1])
        return run(tokens, children)

    monkeypatch.setattr(engine, "run", aborting)
    for one in requests:
        scheduler.submit(one)
    assert labels_received(requests[0]) == [labels_of(staying)[staying.root]]
    until_running(scheduler, 0)
    assert inbox(requests[1]).events.empty()
    assert engine.kept_count == 0


def test_new_tree_joins_the_next_iteration_despite_a_large_one(scheduler: Scheduler, engine: FakeTreeEngine) -> None:
    runs_before_end: dict[str, int] = {}

    class RecordingInbox(Inbox):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def receive(self, event: Event) -> None:
            runs_before_end[self.name] = len(engine.runs)
            super().receive(event)

    large, small = tree_sequence(without_poison(3, 0, 5000)), without_poison(4, 0, 30)
    large.receiver = RecordingInbox("large")
    engine.gate.clear()
    scheduler.submit(large)
    until_running(scheduler, 1)
    one = tree_sequence(small)
    one.receiver = RecordingInbox("small")
    scheduler.submit(one)
    engine.gate.set()
    assert labels_received(one) == [labels_of(small)[small.root]]
    labels_received(large)
    # One iteration per level, none of which has more nodes than half a run, and the one that was in progress.
    assert runs_before_end["small"] <= max(order_of(small)[1]) + 30
    assert runs_before_end["large"] > 2 * runs_before_end["small"]


def test_states_of_leaves_are_computed_once(scheduler: Scheduler, engine: FakeTreeEngine) -> None:
    tree = RandomTree([1, 4, 5, 4], [[1, 2, 3], [], [], []], 0)
    one = tree_sequence(tree)
    scheduler.submit(one)
    assert labels_received(one) == [labels_of(tree)[0]]
    until_running(scheduler, 0)
    before = len(engine.runs)
    again = tree_sequence(tree)
    scheduler.submit(again)
    assert labels_received(again) == [labels_of(tree)[0]]
    assert engine.runs[before:] == [1]
    every = tree_sequence(tree, every_node=True)
    scheduler.submit(every)
    assert labels_received(every) == labels_of(tree)
    alone = tree_sequence(RandomTree([4], [[]], 0))
    scheduler.submit(alone)
    assert labels_received(alone) == [4]


def test_stop_and_internal_errors_fail_running_trees(
    scheduler: Scheduler, engine: FakeTreeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()

    def explode(*arguments: object, **options: object) -> None:
        broken.set()
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler._batch, "_collect", explode)
        victim = tree_sequence(without_poison(5, 0, 50))
        scheduler.submit(victim)
        assert isinstance(inbox(victim).events.get(timeout=10), Failed)
    tree = without_poison(6, 0, 50)
    later = tree_sequence(tree)
    scheduler.submit(later)
    assert labels_received(later) == [labels_of(tree)[tree.root]]
    until_running(scheduler, 0)
    assert engine.kept_count == 0
    engine.gate.clear()
    last = tree_sequence(without_poison(7, 0, 50))
    scheduler.submit(last)
    until_running(scheduler, 1)
    threading.Timer(0.05, engine.gate.set).start()
    scheduler.stop()
    event = inbox(last).events.get(timeout=10)
    assert isinstance(event, Failed)
    assert isinstance(event.error, ServerDrainingError)


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_fair(seed: int) -> None:
    random = np.random.default_rng(seed)
    demands = random.integers(1, 40, random.integers(1, 30))
    most = int(random.integers(len(demands), 200))
    shares = _shares(demands, most)
    assert (shares >= 1).all()
    assert (shares <= demands).all()
    assert shares.sum() <= most
    cut = shares < demands
    # No share exceeds a reduced one, and the remainder is too small to give each reduced share one more.
    assert not cut.any() or (shares.max() == shares[cut].min() and most - shares.sum() < cut.sum())
