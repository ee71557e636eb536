"""Trees that run side by side: a turn takes the step at nodes whose children are done, of all trees at once.

Every tree goes from its deepest level to its root, a level or a part of one a turn, so that no more states are kept
than those of two levels. Nodes of all trees share the run; where there are more than fit, every tree gets its share.
What happens to nodes is done for all of them at once, in numpy; what happens to trees, when they come and when they go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from elman_server.engine import NO_CHILD, NodeResults, TreeEngine
from elman_server.errors import EngineError
from elman_server.scheduling.running import MODEL_FAILED, Tell
from elman_server.scheduling.sequence import Event, Failed, Sequence
from elman_server.scheduling.tree import NODE, Tree, planted

_ROOM = 1024  # nodes
# Ends gather until they are a quarter of those who run, or for so long.
_GATHER_SECONDS, _GATHERED_SHARE = 0.005, 0.25

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Turn:
    """What a turn runs; its nodes are those of the first tree, then those of the second, and so on.

    Attributes:
        counts: how many nodes each tree has in it, [trees].
        ends: where those of each tree end, [trees].
        nodes: where they are among all nodes, [nodes].
        tokens: what they read, [nodes].
        children: where the states of their children are kept, [nodes, C].
        done: where those children are among all nodes.
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


class Forest:
    """The trees that run; implements `Running`. A slot is a tree, and a node of a run.

    Args:
        name: the model's, for the log.
        engine: takes the steps.
        label_output: the output that is shown.
    """

    def __init__(self, name: str, engine: TreeEngine, *, label_output: str) -> None:
        self._name = name
        self._engine = engine
        self._label_output = label_output
        self._trees: list[Tree] = []
        # Of each tree: where its nodes begin and end, and where those end that are still to be run.
        self._starts, self._stops, self._ends = (np.zeros(engine.capacity, np.int64) for _ in range(3))
        self._nodes = np.zeros(_ROOM, NODE)
        self._used = 0  # nodes behind these are of nobody
        self._untold: list[tuple[Tree, Event]] = []
        self._tell_by = 0.0  # when the first of those is to be told at the latest

    @property
    def capacity(self) -> int:
        return self._engine.capacity

    def __len__(self) -> int:
        return len(self._trees)

    @property
    def free(self) -> int:
        return self.capacity - len(self._trees)

    def admit(self, newcomers: list[Sequence], tell: Tell) -> None:
        if not newcomers:
            return
        trees = [tree for tree in newcomers if isinstance(tree, Tree)]
        assert len(trees) == len(newcomers)
        count = sum(len(tree.forced) for tree in trees)
        if self._used + count > len(self._nodes):
            self._make_room(count)
        new = planted(trees, self._used, self._engine.known)
        self._nodes[self._used : self._used + count] = new.nodes
        self._used += count
        places = slice(len(self._trees), len(self._trees) + len(trees))
        self._starts[places], self._stops[places], self._ends[places] = new.starts, new.stops, new.starts + new.counts
        self._trees += trees

    def drop_aborted(self) -> None:
        self._drop([place for place, tree in enumerate(self._trees) if tree.aborted])

    def take_turn(self, others_wait: bool, tell: Tell, interrupted: Callable[[], bool]) -> None:
        turn = self._next_turn()
        failed: list[int] = []
        try:
            results = self._engine.run(turn.tokens, turn.children)
        except EngineError as error:
            results, failed = self._run_one_by_one(turn, error)
        self._nodes["place"][turn.nodes] = results.places
        self._nodes["place"][turn.done] = NO_CHILD
        self._engine.release(turn.freed)
        count = len(self._trees)
        self._ends[:count] -= turn.counts
        ended = np.flatnonzero(self._ends[:count] == self._starts[:count]).tolist()
        self._show(turn, results, ended)
        self._finish(ended, failed)
        self._drop({*ended, *failed})
        if len(self._untold) >= _GATHERED_SHARE * len(self._trees) or time.perf_counter() >= self._tell_by:
            self._tell_ended(tell)

    def fail(self, error: Exception, tell: Tell) -> None:
        for tree in self._trees:
            if not tree.ended:
                tree.ended = True
                self._untold.append((tree, Failed(error)))
        self._trees.clear()
        self._used = 0
        self._engine.release_all()
        self._tell_ended(tell)

    def _next_turn(self) -> _Turn:
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
        return _Turn(counts, until, nodes, found["token"], children, done, freed)

    def _run_one_by_one(self, turn: _Turn, error: EngineError) -> tuple[NodeResults, list[int]]:
        """A run has failed: find out which trees' fault it is, so that the others go on."""
        _log.error("step failed", model=self._name, nodes=len(turn.nodes), error=str(error))
        places = np.full(len(turn.nodes), NO_CHILD)
        outputs: dict[str, NDArray[np.generic]] = {}
        failed: list[int] = []
        for tree in np.flatnonzero(turn.counts).tolist():
            part = turn.part(tree)
            try:
                alone = self._engine.run(turn.tokens[part], turn.children[part])
            except EngineError:
                failed.append(tree)
                continue
            places[part] = alone.places
            for name, values in alone.outputs.items():
                whole = np.zeros((len(turn.nodes), *values.shape[1:]), values.dtype)
                outputs.setdefault(name, whole)[part] = values
        return NodeResults(places, outputs), failed

    def _show(self, turn: _Turn, results: NodeResults, ended: list[int]) -> None:
        """Give trees what their nodes show, as far as it is asked for."""
        shown = results.outputs.get(self._label_output)
        if shown is None:
            return  # All have failed.
        asking = [place for place, tree in enumerate(self._trees) if tree.order is not None and turn.counts[place]]
        for place in {*asking, *ended}:
            self._trees[place].show(shown[turn.part(place)], int(self._ends[place] - self._starts[place]))

    def _finish(self, ended: list[int], failed: list[int]) -> None:
        if not self._untold:
            self._tell_by = time.perf_counter() + _GATHER_SECONDS
        for place in {*ended, *failed}:
            tree = self._trees[place]
            tree.ended = True
            self._untold.append((tree, Failed(MODEL_FAILED) if place in failed else tree.finished()))

    def _tell_ended(self, tell: Tell) -> None:
        """Tell of those that have ended: to hand on a few, and to take up a few in their place, takes about as long as
        many do."""
        tell([(tree.receiver, event) for tree, event in self._untold if not tree.aborted])
        self._untold.clear()

    def _drop(self, leaving: Collection[int]) -> None:
        """Free the slots of trees, the last first, so that the last one in use can always fill the hole."""
        for place in sorted(leaving, reverse=True):
            kept = self._nodes["place"][self._starts[place] : self._stops[place]]
            self._engine.release(kept[kept != NO_CHILD])
            last = len(self._trees) - 1
            self._trees[place] = self._trees[last]
            for values in (self._starts, self._stops, self._ends):
                values[place] = values[last]
            self._trees.pop()
        if not self._trees:
            self._used = 0
            self._engine.release_all()

    def _make_room(self, count: int) -> None:
        """Put the nodes of all trees together, so that there is room for so many more behind them."""
        trees = range(len(self._trees))
        needed = count + sum(int(self._stops[place] - self._starts[place]) for place in trees)
        nodes = np.zeros(max(2 * needed, _ROOM), NODE)
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


def _shares(wanted: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """How many nodes each tree gets, [trees], if they want so many and there are so many in all: as many as it wants,
    unless that is more than those get who want more than there are for them. One at least."""
    if wanted.sum() <= most:
        return wanted
    ascending = np.sort(wanted)
    left = most - np.cumsum(ascending) + ascending  # for it and those who want more
    even = left // np.arange(len(wanted), 0, -1)
    first = int(np.flatnonzero(ascending > even)[0])
    shares: NDArray[np.int64] = np.minimum(wanted, even[first])
    return shares
