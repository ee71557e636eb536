"""The engine for nodes of trees: states are kept in pools, from which a run gathers those of the children.

The state of a leaf depends on its token alone, and half the nodes of a binary tree are leaves: their states are kept
for good, as far as memory allows, and are not computed again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_protos.element_types import element_type
from elman_server.engine.checking import check_graph
from elman_server.engine.interface import NO_CHILD, NodeResults
from elman_server.engine.policy import DEFAULT_ENGINE_POLICY, EnginePolicy
from elman_server.engine.providers import Opener
from elman_server.engine.trials.limits import RunLimit, check_step_ends
from elman_server.engine.trials.nodes import try_nodes
from elman_server.errors import EngineError

_WARMED_WIDTHS = (1, 2, 4)  # numbers of children, where it may be any
_ROOMY = 64  # times the capacity: a pool with more places shrinks when all are released


class OnnxTreeEngine:
    """Takes a bundle's steps over trees; implements `TreeEngine`.

    Args:
        bundle: a model whose manifest has a tree.
        capacity: the largest number of nodes of a run.
        opener: opens sessions where the model runs.
        policy: the thresholds.

    Raises:
        ModelLoadError: the graph is rejected, or is not what the manifest says.
    """

    def __init__(
        self, bundle: Bundle, *, capacity: int, opener: Opener, policy: EnginePolicy = DEFAULT_ENGINE_POLICY
    ) -> None:
        opened = opener.open(bundle.graph_path, bundle.graph_path)
        check_graph(bundle, opened.session)
        check_step_ends(bundle, opened.session, policy.trial_run_seconds)
        on_cpu = opener.open_on_cpu(opened, bundle.graph_path)
        if on_cpu is not None:
            try_nodes(bundle, on_cpu, policy.trial_run_seconds)
        self._limit, self._warm_up_seconds = RunLimit(bundle.graph_path), policy.warm_up_seconds
        self._session: onnxruntime.InferenceSession = opened.session
        self._provider, self._cores = opened.provider, opened.cores
        self._capacity = capacity
        step = bundle.spec.step
        self._child_count = step.tree.child_count
        self._input, self._input_type = step.inputs[0].name, element_type(step.inputs[0].data_type).dtype
        self._labels = [output.name for output in step.outputs if output.HasField("label_logits")]
        self._next_names = [state.output_name for state in step.states]
        # By state input name, [places, *shape]; at NO_CHILD there are zeros.
        self._pools: dict[str, NDArray[Any]] = {
            state.input_name: np.zeros((1, *state.shape), element_type(state.data_type).dtype) for state in step.states
        }
        size = bundle.vocabulary_spec(step.inputs[0].token.vocabulary).size
        self._known = np.full(size, NO_CHILD)  # by token
        self._children_limit = policy.gathered_children_limit
        self._known_left = policy.leaf_state_bytes // sum(pool.nbytes for pool in self._pools.values())
        self._stays = np.zeros(1, np.bool_)  # by place
        self._free = np.empty(0, np.int64)  # free places; the first `_free_count` are valid
        self._free_count = 0
        self._size = 1
        self._grow(capacity)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def provider(self) -> str:
        return self._provider.value

    @property
    def child_count(self) -> int:
        return self._child_count

    @property
    def kept_count(self) -> int:
        """The number of states that are kept, without those that are kept for good."""
        return self._size - 1 - self._free_count - int(self._stays.sum())

    def run(self, tokens: NDArray[np.int64], children: NDArray[np.int64]) -> NodeResults:
        if children.size <= self._children_limit:
            return self._run(tokens, children)
        # A few nodes with very many children must not make all others gather as many.
        counts = np.maximum((children != NO_CHILD).sum(axis=1), self._child_count or 1)
        places = np.full(len(tokens), NO_CHILD)
        outputs: dict[str, NDArray[Any]] = {}
        for nodes in _groups(counts, self._children_limit):
            width = int(counts[nodes].max())
            try:
                found = self._run(tokens[nodes], children[nodes, :width])
            except Exception:
                self.release(places[places != NO_CHILD])
                raise
            places[nodes] = found.places
            for name, values in found.outputs.items():
                whole = np.zeros((len(tokens), *values.shape[1:]), values.dtype)
                outputs.setdefault(name, whole)[nodes] = values
        return NodeResults(places, outputs)

    def _run(self, tokens: NDArray[np.int64], children: NDArray[np.int64]) -> NodeResults:
        try:
            feeds = {name: pool.take(children, axis=0) for name, pool in self._pools.items()}
            feeds[self._input] = tokens.astype(self._input_type, copy=False)
            with self._cores.pinned(0):
                found = self._session.run([*self._labels, *self._next_names], feeds, self._limit.options)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(f"the step failed: {error}") from error
        places = self._take(len(tokens))
        for pool, values in zip(self._pools.values(), found[len(self._labels) :], strict=True):
            pool[places] = values
        self._learn(tokens, children, places)
        return NodeResults(places, dict(zip(self._labels, found, strict=False)))

    def known(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._known[tokens]

    def _learn(self, tokens: NDArray[np.int64], children: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Keep the states of leaves for good."""
        if not self._known_left:
            return
        leaves = np.flatnonzero(children[:, 0] == NO_CHILD)
        new = leaves[self._known[tokens[leaves]] == NO_CHILD][: self._known_left]
        if new.size:
            self._known[tokens[new]] = places[new]  # Of several leaves with one token, the last one.
            staying = self._known[tokens[new]]
            self._stays[staying] = True
            self._known_left -= len(np.unique(staying))

    def release(self, places: NDArray[np.int64]) -> None:
        places = places[~self._stays[places]]
        self._free[self._free_count : self._free_count + len(places)] = places
        self._free_count += len(places)

    def release_all(self) -> None:
        if self._size > _ROOMY * self._capacity:
            self._shrink()
            return
        free = np.flatnonzero(~self._stays)[1:]
        self._free[: len(free)] = free
        self._free_count = len(free)

    def _take(self, count: int) -> NDArray[np.int64]:
        if count > self._free_count:
            self._grow(max(count, self._size))
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count].copy()

    def _grow(self, count: int) -> None:
        """Add `count` places."""
        for name, pool in self._pools.items():
            self._pools[name] = np.concatenate([pool, np.zeros((count, *pool.shape[1:]), pool.dtype)])
        free = np.empty(self._size - 1 + count, np.int64)
        free[: self._free_count] = self._free[: self._free_count]
        free[self._free_count : self._free_count + count] = np.arange(self._size, self._size + count)
        self._free, self._free_count = free, self._free_count + count
        self._stays = np.concatenate([self._stays, np.zeros(count, np.bool_)])
        self._size += count

    def _shrink(self) -> None:
        """Return the memory of many large trees when none of them is left."""
        staying = np.flatnonzero(self._stays)
        count = len(staying)
        moved = np.full(self._size, NO_CHILD)
        moved[staying] = np.arange(1, count + 1)
        self._known[self._known != NO_CHILD] = moved[self._known[self._known != NO_CHILD]]
        for name, pool in self._pools.items():
            self._pools[name] = np.concatenate([pool[:1], pool[staying]])
        self._stays = np.arange(count + 1) > 0
        self._size, self._free, self._free_count = count + 1, np.empty(0, np.int64), 0
        self._grow(self._capacity)

    def warm_up(self) -> None:
        """Run every likely batch size, so that no request pays for first-time work."""
        for size in {*(2**power for power in range((self.capacity - 1).bit_length())), self.capacity}:
            for width in (self._child_count,) if self._child_count else _WARMED_WIDTHS:
                with self._limit.within(self._warm_up_seconds):
                    self.run(np.zeros(size, np.int64), np.full((size, width), NO_CHILD))
                self.release_all()


def _groups(counts: NDArray[np.int64], limit: int) -> list[NDArray[np.int64]]:
    """Divide nodes into runs that gather at most `limit` children each, padding included.

    Args:
        counts: int64 [nodes], the number of children of each.
        limit: the largest number of gathered children.
    """
    order = np.argsort(counts, kind="stable")
    groups: list[NDArray[np.int64]] = []
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * counts[order[end]] > limit:
            groups.append(order[start:end])
            start = end
    return groups
