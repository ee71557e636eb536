"""Trees that run together: an iteration runs nodes whose children have been computed, of all trees in one run.

Every tree is computed from its deepest level to its root, a level or a part of one per iteration, so that the states of
at most two levels are kept. Where more nodes are ready than fit into a run, every tree gets its share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from elman_server.engine import NO_CHILD, NodeResults, TreeEngine
from elman_server.scheduling.compaction import holes
from elman_server.scheduling.events import Event, Failed
from elman_server.scheduling.interface import INTERNAL, MODEL_FAILED, Emission
from elman_server.scheduling.isolation import engine_error, log_defect, run_each, try_each
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.sequence import Sequence
from elman_server.scheduling.trees.flatten import NODE, flatten
from elman_server.scheduling.trees.tree import Tree

_INITIAL_NODES = 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class NodeSchedule:
    """The nodes of one run: those of the first tree, then those of the second, and so on.

    Attributes:
        counts: int64 [trees], how many nodes of each tree run.
        ends: int64 [trees], where those of each end in the run.
        nodes: int64 [nodes], their numbers among all nodes.
        tokens: int64 [nodes], their inputs.
        children: int64 [nodes, C], where the states of their children are kept.
        done: the numbers of those children.
        freed: where their states are kept.
    """

    counts: NDArray[np.int64]
    ends: NDArray[np.int64]
    nodes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    children: NDArray[np.int64]
    done: NDArray[np.int64]
    freed: NDArray[np.int64]

    def part(self, tree: int) -> slice:
        """The nodes of one tree."""
        return slice(int(self.ends[tree] - self.counts[tree]), int(self.ends[tree]))


@dataclass(frozen=True)
class NodeOutput:
    """What a run over nodes has returned.

    Attributes:
        results: the results, in the order of the schedule.
        failed: the trees that failed.
    """

    results: NodeResults
    failed: list[int]


class TreeBatch:
    """The running trees; implements `RunningBatch`. A slot is a tree, and a node of a run.

    Twelve of its methods are those of `RunningBatch`.

    Args:
        name: the model's name, for the log.
        engine: takes the steps.
        policy: the thresholds.
        label_output: the output with the labels.
    """

    def __init__(self, name: str, engine: TreeEngine, policy: SchedulingPolicy, *, label_output: str) -> None:
        self._name = name
        self._engine = engine
        self._policy = policy
        self._label_output = label_output
        self._trees: list[Tree] = []
        # Of each tree: where its nodes begin and end, and where those end that are still to be run.
        self._starts, self._stops, self._ends = (np.zeros(engine.capacity, np.int64) for _ in range(3))
        self._nodes = np.zeros(_INITIAL_NODES, NODE)
        self._used = 0  # nodes from here on are unused
        self._finished: list[tuple[Tree, Event]] = []  # whose last event has not been emitted
        self._flush_at = 0.0  # when the first of those is emitted at the latest

    @property
    def capacity(self) -> int:
        return self._engine.capacity

    def __len__(self) -> int:
        return len(self._trees)

    @property
    def sequences(self) -> list[Tree]:
        return self._trees

    @property
    def preemption(self) -> None:
        """A tree has its slot for a few runs, so that none is taken."""

    @property
    def free(self) -> int:
        return self.capacity - len(self._trees)

    def admit(self, sequences: list[Sequence]) -> list[Emission]:
        trees = [tree for tree in sequences if isinstance(tree, Tree)]
        assert len(trees) == len(sequences)
        if not trees:
            return []
        try:
            self._append(trees)
        except Exception:  # Nothing has changed: the trees that meet the defect are found.
            _, failed = try_each(self._name, trees, lambda tree: self._append([tree]))
            for tree in failed:
                tree.is_finished = True
            return [(tree.receiver, Failed(INTERNAL)) for tree in failed]
        return []

    def _append(self, trees: list[Tree]) -> None:
        count = sum(len(tree.forced) for tree in trees)
        if self._used + count > len(self._nodes):
            self._make_room(count)
        new = flatten(trees, self._used, self._engine.known)
        self._nodes[self._used : self._used + count] = new.nodes
        self._used += count
        places = slice(len(self._trees), len(self._trees) + len(trees))
        self._starts[places], self._stops[places], self._ends[places] = new.starts, new.stops, new.starts + new.counts
        self._trees += trees

    def pending(self) -> dict[Sequence, Future[Any]]:
        return {}

    def schedule(self, others_wait: bool) -> NodeSchedule:
        ends = self._ends[: len(self._trees)]
        counts = _shares(ends - self._nodes["level_start"][ends - 1], self.capacity)
        until = np.cumsum(counts)
        nodes = self._nodes["todo"][np.repeat(ends - until, counts) + np.arange(until[-1])]
        found = self._nodes[nodes]
        child_counts = found["child_count"]
        width = self._engine.child_count or max(1, int(child_counts.max()))
        there = np.arange(width) < child_counts[:, None]
        done = (found["first_child"][:, None] + np.arange(width))[there]
        children = np.full(there.shape, NO_CHILD)
        freed = self._nodes["place"][done]
        children[there] = freed
        return NodeSchedule(counts, until, nodes, found["token"], children, done, freed)

    def run(self, schedule: NodeSchedule, interrupted: Callable[[], bool]) -> NodeOutput:
        try:
            return NodeOutput(self._engine.run(schedule.tokens, schedule.children), [])
        except Exception as failure:
            error = engine_error(failure)
            _log.error("step failed", model=self._name, nodes=len(schedule.nodes), error=str(error))
            return self._run_trees_alone(schedule)

    def update(self, schedule: NodeSchedule, output: NodeOutput, *, aborted: bool) -> list[Emission]:
        self._nodes["place"][schedule.nodes] = output.results.places
        self._nodes["place"][schedule.done] = NO_CHILD
        self._engine.release(schedule.freed)
        count = len(self._trees)
        self._ends[:count] -= schedule.counts
        ended = np.flatnonzero(self._ends[:count] == self._starts[:count]).tolist()
        failures = dict.fromkeys(self._collect(schedule, output.results, ended), INTERNAL)
        failures |= dict.fromkeys(output.failed, MODEL_FAILED)
        self._finish({*ended, *failures}, failures)
        dropped = [place for place, tree in enumerate(self._trees) if tree.aborted] if aborted else []
        self._release({*ended, *failures, *dropped})
        enough = len(self._finished) >= self._policy.tree_flush_share * len(self._trees)
        return self._flush() if enough or time.perf_counter() >= self._flush_at else []

    def record_emission(self, count: int, seconds: float) -> None:
        """Nothing depends on it."""

    def fail(self, error: Exception) -> list[Emission]:
        for tree in self._trees:
            if not tree.is_finished:
                tree.is_finished = True
                self._finished.append((tree, Failed(error)))
        self._trees.clear()
        self._used = 0
        emissions = self._flush()
        try:
            self._engine.release_all()
        except Exception:  # It is called again whenever no tree is left.
            log_defect(self._name)
        return emissions

    def _run_trees_alone(self, schedule: NodeSchedule) -> NodeOutput:
        """Nodes of several trees failed: run those of each tree, so that only the trees that fail alone do."""
        parts = {tree: schedule.part(tree) for tree in np.flatnonzero(schedule.counts).tolist()}
        alone, failures = run_each(
            parts, lambda tree: self._engine.run(schedule.tokens[parts[tree]], schedule.children[parts[tree]])
        )
        places = np.full(len(schedule.nodes), NO_CHILD)
        outputs: dict[str, NDArray[np.generic]] = {}
        for tree, results in alone.items():
            places[parts[tree]] = results.places
            for name, values in results.outputs.items():
                whole = np.zeros((len(schedule.nodes), *values.shape[1:]), values.dtype)
                outputs.setdefault(name, whole)[parts[tree]] = values
        return NodeOutput(NodeResults(places, outputs), list(failures))

    def _collect(self, schedule: NodeSchedule, results: NodeResults, ended: list[int]) -> list[int]:
        """Give trees the outputs of their nodes, as far as they are part of the answer; returns those that have met a
        defect."""
        outputs = results.outputs.get(self._label_output)
        if outputs is None:
            return []  # All trees failed.
        labelled = [
            place for place, tree in enumerate(self._trees) if tree.order is not None and schedule.counts[place]
        ]

        def show(place: int) -> None:
            self._trees[place].show(outputs[schedule.part(place)], int(self._ends[place] - self._starts[place]))

        _, defective = try_each(self._name, {*labelled, *ended}, show)
        return defective

    def _finish(self, places: Collection[int], failures: Mapping[int, Exception]) -> None:
        if not self._finished:
            self._flush_at = time.perf_counter() + self._policy.tree_flush_seconds
        for place in places:
            tree = self._trees[place]
            event = Failed(failures[place]) if place in failures else self._last_event(tree)
            tree.is_finished = True
            self._finished.append((tree, event))

    def _last_event(self, tree: Tree) -> Event:
        try:
            return tree.finished()
        except Exception:
            log_defect(self._name)
            return Failed(INTERNAL)

    def _flush(self) -> list[Emission]:
        """The last events of finished trees. Emitting a few, and accepting a few in their place, takes about as long as
        many do, so they are coalesced."""
        emissions: list[Emission] = [(tree.receiver, event) for tree, event in self._finished if not tree.aborted]
        self._finished.clear()
        return emissions

    def _release(self, leaving: Collection[int]) -> None:
        for place, last in holes(leaving, len(self._trees)):
            kept = self._nodes["place"][self._starts[place] : self._stops[place]]
            self._engine.release(kept[kept != NO_CHILD])
            self._trees[place] = self._trees[last]
            for values in (self._starts, self._stops, self._ends):
                values[place] = values[last]
            self._trees.pop()
        if not self._trees:
            self._used = 0
            self._engine.release_all()

    def _make_room(self, count: int) -> None:
        """Move the nodes of all trees together, so that there is room for `count` more after them."""
        trees = range(len(self._trees))
        needed = count + sum(int(self._stops[place] - self._starts[place]) for place in trees)
        nodes = np.zeros(max(2 * needed, _INITIAL_NODES), NODE)
        self._used = 0
        for place in trees:
            start, stop = int(self._starts[place]), int(self._stops[place])
            moved = self._used - start
            part = nodes[start + moved : stop + moved]
            part[:] = self._nodes[start:stop]
            for name in ("first_child", "todo", "level_start"):
                part[name] += moved
            for values in (self._starts, self._stops, self._ends):
                values[place] += moved
            self._used = stop + moved
        self._nodes = nodes


def _shares(ready: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Returns how many nodes of each tree run, int64 [trees], one at least.

    A tree gets all its ready nodes, unless they are more than an even share of what the trees with fewer leave over.

    Args:
        ready: int64 [trees], how many nodes of each are ready.
        capacity: how many nodes run in all.
    """
    if ready.sum() <= capacity:
        return ready
    ascending = np.sort(ready)
    left = capacity - np.cumsum(ascending) + ascending  # for a tree and those with more
    even = left // np.arange(len(ready), 0, -1)
    first = int(np.flatnonzero(ascending > even)[0])
    shares: NDArray[np.int64] = np.minimum(ready, even[first])
    return shares
