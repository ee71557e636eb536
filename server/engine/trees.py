"""The engine for nodes of trees: their states are kept in pools, from which those of the children are gathered."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bundle import Bundle
from server.engine.checking import check_graph
from server.engine.errors import EngineError
from server.engine.interface import NO_CHILD, NodeResults
from server.engine.providers import Opener
from server.engine.unrolling import DTYPES

_WARMED_WIDTHS = (1, 2, 4)  # numbers of children, where it may be any


class OnnxTreeEngine:
    """Takes a bundle's steps over trees; implements `TreeEngine`.

    Args:
        bundle: the model, whose manifest has a tree.
        capacity: the largest number of nodes in a run.
        opener: opens sessions where the model is to run.

    Raises:
        ModelLoadError: the graph is rejected, or is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, *, capacity: int, opener: Opener) -> None:
        opened = opener.open(bundle.graph_path, bundle.graph_path)
        check_graph(bundle, opened.session)
        self._session: onnxruntime.InferenceSession = opened.session
        self._provider = opened.provider
        self._capacity = capacity
        step = bundle.spec.step
        self._child_count = step.tree.child_count
        self._input, self._input_type = step.inputs[0].name, DTYPES[step.inputs[0].data_type]
        self._labels = [output.name for output in step.outputs if output.HasField("label_logits")]
        self._next_names = [state.output_name for state in step.states]
        # By state input name, [places, *shape]; at NO_CHILD there are zeros.
        self._pools: dict[str, NDArray[Any]] = {
            state.input_name: np.zeros((1, *state.shape), DTYPES[state.data_type]) for state in step.states
        }
        self._free = np.empty(0, np.int64)  # places, of which the first `_free_count` count
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
        """The number of states that are kept."""
        return self._size - 1 - self._free_count

    def run(self, tokens: NDArray[np.int64], children: NDArray[np.int64]) -> NodeResults:
        feeds = {name: pool.take(children, axis=0) for name, pool in self._pools.items()}
        feeds[self._input] = tokens.astype(self._input_type, copy=False)
        try:
            found = self._session.run([*self._labels, *self._next_names], feeds)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(f"the step failed: {error}") from error
        places = self._take(len(tokens))
        for pool, values in zip(self._pools.values(), found[len(self._labels) :], strict=True):
            pool[places] = values
        return NodeResults(places, dict(zip(self._labels, found, strict=False)))

    def release(self, places: NDArray[np.int64]) -> None:
        self._free[self._free_count : self._free_count + len(places)] = places
        self._free_count += len(places)

    def release_all(self) -> None:
        self._free[:] = np.arange(1, self._size)
        self._free_count = self._size - 1

    def _take(self, count: int) -> NDArray[np.int64]:
        if count > self._free_count:
            self._grow(max(count, self._size))
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count].copy()

    def _grow(self, count: int) -> None:
        """Have so many places more."""
        for name, pool in self._pools.items():
            self._pools[name] = np.concatenate([pool, np.zeros((count, *pool.shape[1:]), pool.dtype)])
        free = np.empty(self._size - 1 + count, np.int64)
        free[: self._free_count] = self._free[: self._free_count]
        free[self._free_count : self._free_count + count] = np.arange(self._size, self._size + count)
        self._free, self._free_count = free, self._free_count + count
        self._size += count

    def warm_up(self) -> None:
        """Run every batch size that is likely, so that no caller pays for first-time work."""
        for size in {*(2**power for power in range((self.capacity - 1).bit_length())), self.capacity}:
            for width in (self._child_count,) if self._child_count else _WARMED_WIDTHS:
                self.run(np.zeros(size, np.int64), np.full((size, width), NO_CHILD))
                self.release_all()
