"""The checks of steps whose rows are nodes of trees, for trees of any shape."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch

from elman_export.contract import Labels, NextToken, StepInterface, StepModule, Tensors, Token, Tree
from elman_export.examples import Example, make_example, run_step
from elman_export.export_error import ExportError
from elman_export.graph_names import state_input_name, state_output_name
from elman_export.graph_runtime import Arrays, as_arrays, run_graph
from elman_export.parity import CHECKED_ROWS, CHECKED_STEPS, check_parts, compare

# Numbers of children, if any is possible; none of them is the traced one.
_WIDTHS = (1, 2, 3, 5, 8, 13)
_EMPTY_POSITIONS = (1, 2, 3, 8, 40)


def check_tree(module: StepModule, interface: StepInterface, quantize: str | None) -> None:
    """Check that a step's interface is possible for nodes of trees.

    Raises:
        ExportError: it is not.
    """
    tree = interface.tree
    assert tree is not None
    if interface.source is not None:
        raise ExportError("a tree has no source: a node reads one token and the states of its children")
    kinds = list(interface.inputs.values())
    if len(kinds) != 1 or not isinstance(kinds[0], Token) or interface.constants:
        raise ExportError("a node of a tree reads one token and no constants: give one input, a Token")
    if not any(isinstance(meaning, Labels) for meaning in interface.outputs.values()):
        raise ExportError("a node of a tree has labels: give an output that is Labels")
    if any(isinstance(meaning, NextToken) for meaning in interface.outputs.values()):
        raise ExportError("a node of a tree has labels and no next token: no output can be NextToken")
    if tree.children < 0:
        raise ExportError(f"tree: children: got {tree.children}; it must be 0, for any number, or more")
    size = kinds[0].vocabulary.size
    if not 0 <= tree.inner_id < size:
        raise ExportError(f"tree: inner_id: got {tree.inner_id}; the ids of the vocabulary are 0 to {size - 1}")
    states = module.initial_state(1)
    if not states:
        raise ExportError("initial_state() is empty: a node of a tree reads the states of its children")
    for name, value in states.items():
        if bool((value != 0).any()):
            raise ExportError(f"initial_state(): {name} is not zero, but zeros stand for a missing child")
    if quantize is not None:
        raise ExportError(f"quantize: got {quantize!r}; steps over trees are exported in their own precision only")


def check_tree_parity(
    session: onnxruntime.InferenceSession, module: StepModule, interface: StepInterface, tree: Tree
) -> float:
    """Compare torch and onnxruntime over random trees, level by level from the leaves up.

    Returns:
        The largest difference.

    Raises:
        ExportError: the difference is too large.
    """
    return max(_check_levels(session, module, interface, tree, rows) for rows in CHECKED_ROWS)


def check_tree_independence(
    session: onnxruntime.InferenceSession, module: StepModule, interface: StepInterface, tree: Tree
) -> None:
    """Check that the bytes of a node depend neither on the rest of the batch nor on empty child positions.

    Raises:
        ExportError: they do.
    """
    rows = max(CHECKED_ROWS)
    for width in _widths(tree):
        nodes = make_example(module, interface, rows, seed=width, children=width)
        random = np.random.default_rng(width)
        given = as_arrays(nodes.graph_inputs())
        missing = np.arange(width) >= random.integers(0, width + 1, rows)[:, None]
        for name in map(state_input_name, nodes.state):
            given[name][missing] = 0
        check_parts(session, given)
        if not tree.children:
            _check_empty_positions(session, given, [state_input_name(name) for name in nodes.state])


def _check_empty_positions(session: onnxruntime.InferenceSession, given: Arrays, states: list[str]) -> None:
    expected = run_graph(session, given)
    for more in _EMPTY_POSITIONS:
        padded = dict(given)
        for name in states:
            value = given[name]
            empty = np.zeros((len(value), more, *value.shape[2:]), value.dtype)
            padded[name] = np.concatenate([value, empty], axis=1)
        for name, found in run_graph(session, padded).items():
            if found.tobytes() != expected[name].tobytes():
                raise ExportError(
                    f"{name}: a node's value changes with {more} empty positions after its children, so one caller's "
                    "result would depend on another's; zeros in the position of a child must change nothing in step()"
                )


def _widths(tree: Tree) -> tuple[int, ...]:
    return (tree.children,) if tree.children else _WIDTHS


def _check_levels(
    session: onnxruntime.InferenceSession, module: StepModule, interface: StepInterface, tree: Tree, rows: int
) -> float:
    """Compare levels of `rows` nodes each, whose children are random nodes of the level below."""
    random = np.random.default_rng(rows)
    widths = _widths(tree)
    states: Tensors = module.initial_state(rows)
    carried = {name: value.detach().numpy() for name, value in states.items()}
    worst = 0.0
    for level in range(CHECKED_STEPS):
        width = widths[level % len(widths)]
        # Row `rows` of the gathered states is zeros: a missing child.
        children = random.integers(0, rows, (rows, width))
        count = random.integers(0, width + 1, rows) if not tree.children else width * random.integers(0, 2, rows)
        children[np.arange(width) >= count[:, None] * (level > 0)] = rows
        fresh = make_example(module, interface, rows, seed=1000 * rows + level)
        below = {name: torch.cat([value, torch.zeros_like(value[:1])])[children] for name, value in states.items()}
        given = {
            state_input_name(name): np.concatenate([value, np.zeros_like(value[:1])])[children]
            for name, value in carried.items()
        }
        outputs, states = run_step(module, Example(fresh.inputs, {}, below, rows, tree), interface.outputs)
        found = run_graph(session, {**as_arrays(fresh.inputs), **given})
        expected = {**outputs, **{state_output_name(name): value for name, value in states.items()}}
        batch = f"with {rows} nodes of up to {width} children"
        worst = max(worst, compare(module, as_arrays(expected), found, batch, f"at level {level}"))
        carried = {name: found[state_output_name(name)] for name in states}
    return worst
