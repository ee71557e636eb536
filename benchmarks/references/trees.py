"""Measure trees with onnxruntime alone: batches of as many trees as there are clients, level by level.

The levels are prepared in advance and the states of a batch are stored level by level, so that the loop consists of a
gather, a `run` and a copy. It is the fixed reference: do not improve it.

    python -m benchmarks.references.trees < order.json

Axes: N nodes, H hidden units.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.cases.tree_set import BinaryTree, make_trees
from benchmarks.processes.worker import Json, answer, measure

_WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class TreeReferenceOrder:
    """What to measure.

    Attributes:
        graph: path of the plain step.
        trees: number of trees.
        batch_size: number of trees per batch.
        seconds: rounds over all trees are repeated for at least this long.
        threads: onnxruntime's intra-op threads; they spin while waiting, its default.
    """

    graph: str
    trees: int
    batch_size: int
    seconds: float
    threads: int


@dataclass(frozen=True)
class TreeReference:
    """The results of the reference.

    Attributes:
        nodes_per_second: nodes per second over all levels.
        runs_per_batch: mean number of levels per batch.
        cpu_us_per_node: CPU time of the process.
    """

    nodes_per_second: float
    runs_per_batch: float
    cpu_us_per_node: float


def measure_tree_reference(order: TreeReferenceOrder) -> TreeReference:
    """Measure the reference in another process."""
    return TreeReference(**measure("benchmarks.references.trees", asdict(order)))


@dataclass(frozen=True)
class _Level:
    """The nodes of a batch whose children have all been computed.

    Attributes:
        tokens: token ids, [N].
        children: rows of the children's states, [N, 2]; row 0 is zeros.
        rows: rows of the nodes' own states.
    """

    tokens: NDArray[np.int64]
    children: NDArray[np.int64]
    rows: slice


def _levels(trees: Sequence[BinaryTree]) -> list[_Level]:
    heights: list[list[int]] = []
    for tree in trees:
        own: list[int] = []
        for children in tree.children:
            own.append(0 if children is None else 1 + max(own[children[0]], own[children[1]]))
        heights.append(own)
    levels, rows, next_row = [], dict[tuple[int, int], int](), 1
    for height in range(1 + max(max(own) for own in heights)):
        nodes = [(index, node) for index, own in enumerate(heights) for node, of in enumerate(own) if of == height]
        below = [trees[index].children[node] for index, node in nodes]
        gathered = [
            (0, 0) if children is None else (rows[index, children[0]], rows[index, children[1]])
            for (index, _), children in zip(nodes, below, strict=True)
        ]
        rows |= {at: next_row + offset for offset, at in enumerate(nodes)}
        tokens = np.array([trees[index].tokens[node] for index, node in nodes])
        levels.append(_Level(tokens, np.array(gathered), slice(next_row, next_row + len(nodes))))
        next_row += len(nodes)
    return levels


class _Loop:
    def __init__(self, order: TreeReferenceOrder) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = order.threads
        self._session = onnxruntime.InferenceSession(order.graph, options, providers=["CPUExecutionProvider"])
        token, *states = self._session.get_inputs()
        self._token = token.name
        self._sizes = {state.name: state.shape[2] for state in states}
        trees = make_trees(order.trees)
        self.batches = [
            _levels(trees[first : first + order.batch_size]) for first in range(0, len(trees), order.batch_size)
        ]
        self.nodes = sum(len(tree.tokens) for tree in trees)

    def round(self) -> None:
        for batch in self.batches:
            self._run(batch)

    def _run(self, levels: Sequence[_Level]) -> None:
        count = levels[-1].rows.stop
        states = {name: np.zeros((count, size), np.float32) for name, size in self._sizes.items()}
        for level in levels:
            feeds: dict[str, NDArray[Any]] = {name: values[level.children] for name, values in states.items()}
            _, *after = self._session.run(None, {self._token: level.tokens, **feeds})
            for values, output in zip(states.values(), after, strict=True):
                values[level.rows] = output


def _measure(payload: Json) -> Json:
    order = TreeReferenceOrder(**payload)
    loop = _Loop(order)
    for _ in range(_WARM_UP_ROUNDS):
        loop.round()
    rounds, started, cpu_before, seconds = 0, time.perf_counter(), time.process_time(), 0.0
    while seconds < order.seconds:
        loop.round()
        rounds += 1
        seconds = time.perf_counter() - started
    nodes = rounds * loop.nodes
    return asdict(
        TreeReference(
            nodes_per_second=nodes / seconds,
            runs_per_batch=float(np.mean([len(batch) for batch in loop.batches])),
            cpu_us_per_node=1e6 * (time.process_time() - cpu_before) / nodes,
        )
    )


if __name__ == "__main__":
    answer(_measure)
