"""Trial steps at nodes of trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_protos.element_types import element_type
from elman_server.engine.foreign_graphs import check_logits
from elman_server.engine.interface import Arrays
from elman_server.engine.trials.graph import TrialGraph, TrialOutput
from elman_server.engine.trials.inputs import random_values
from elman_server.engine.trials.rows import ROWS, check_loud_neighbours, check_neighbours, check_rounding

_LEVELS = 3
_WIDTH = 3  # children, where there may be any number
_EMPTY = 2  # positions of children
_SEED = 9


def try_nodes(bundle: Bundle, session: onnxruntime.InferenceSession, seconds: float) -> None:
    """Check that the results for a node depend neither on other nodes nor on empty positions of children.

    Args:
        bundle: a model whose manifest has a tree.
        session: a session on its graph, on the CPU.
        seconds: how long a run may take.

    Raises:
        ModelLoadError: they do, or an output is not what the manifest says.
        EngineError: onnxruntime failed.
    """
    step = bundle.spec.step
    outputs = {output.name: TrialOutput(output.shape, output.row_axis) for output in step.outputs}
    outputs |= {state.output_name: TrialOutput(state.shape) for state in step.states}
    graph = TrialGraph(bundle.graph_path, session, seconds, outputs)
    random = np.random.default_rng(_SEED)
    width = step.tree.child_count or _WIDTH
    given = step.inputs[0]
    kinds = {state.input_name: element_type(state.data_type).dtype for state in step.states}
    # Those of the level below, and at the end of each zeros: a missing child.
    below: list[Arrays] = [
        {state.input_name: np.zeros((ROWS + 1, *state.shape), kinds[state.input_name]) for state in step.states}
    ] * 2
    scores = []
    for _ in range(_LEVELS):
        children = _children(random, width, any_number=not step.tree.child_count)
        feeds = [
            {given.name: random_values(bundle, given, [ROWS, *given.shape], random)}
            | {name: values[children] for name, values in states.items()}
            for states in below
        ]
        found = check_neighbours(graph, feeds[0], feeds[1])
        scores += [*found]
        below = [
            {state.input_name: _with_zeros(values[state.output_name]) for state in step.states} for values in found
        ]
    check_loud_neighbours(graph, feeds[0], feeds[1])
    rows = [graph.run({name: value[row : row + 1] for name, value in feeds[0].items()}) for row in range(ROWS)]
    alone = {name: np.concatenate([values[name] for values in rows]) for name in outputs}
    check_rounding(graph, alone, found[0], "their number")
    if not step.tree.child_count:
        empty = {name: [(0, 0), (0, _EMPTY), *[(0, 0)] * (feeds[0][name].ndim - 2)] for name in kinds}
        wider = {name: np.pad(value, empty[name]) if name in empty else value for name, value in feeds[0].items()}
        check_rounding(graph, graph.run(wider), found[0], "empty positions after its children")
    joined = {name: np.concatenate([values[name] for values in scores]) for name in outputs}
    check_logits(bundle.graph_path, step.outputs, joined)


def _children(random: np.random.Generator, width: int, *, any_number: bool) -> NDArray[Any]:
    """The places of the children of each node, [ROWS, width]; ROWS for a missing one."""
    children = random.integers(0, ROWS, (ROWS, width))
    count = random.integers(0, width + 1, ROWS) if any_number else width * random.integers(0, 2, ROWS)
    children[np.arange(width) >= count[:, None]] = ROWS
    return children


def _with_zeros(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([values, np.zeros_like(values[:1])])
