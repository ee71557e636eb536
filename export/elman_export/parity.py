"""The checks that a graph computes what its module computes, and that rows do not influence each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from elman_export.contract import StepInterface, StepModule, Tensors
from elman_export.examples import Example, make_example, run_step
from elman_export.export_error import ExportError
from elman_export.graph_names import constant_name, state_input_name, state_output_name
from elman_export.graph_runtime import Arrays, as_arrays, run_graph

CHECKED_ROWS = (1, 2, 5, 8, 17, 64)
CHECKED_STEPS = 12
_INDEPENDENCE_SEED = 7
_PADDING = 37  # positions; not a multiple of a processor's vector length
# Relative; sums in another order, or in float32 where torch rounds each result to 16 bits, differ far less, and a wrong
# gate far more. By the coarsest type that a module computes in.
_TOLERANCE = 2e-4
_TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Absolute; the effect of another order in a sum over padded positions.
_PADDING_TOLERANCE = 1e-6
_PADDING_TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


def check_parity(session: onnxruntime.InferenceSession, module: StepModule, interface: StepInterface) -> float:
    """Compare torch and onnxruntime from a non-zero state, over several steps, at batch sizes that were not traced.

    Returns:
        The largest difference.

    Raises:
        ExportError: the difference is too large, or onnxruntime cannot run the graph.
    """
    return max(_check_rows(session, module, interface, rows) for rows in CHECKED_ROWS)


def _check_rows(
    session: onnxruntime.InferenceSession, module: StepModule, interface: StepInterface, rows: int
) -> float:
    example = make_example(module, interface, rows, rows)
    inputs_alone = StepInterface(interface.inputs)
    carried = as_arrays({state_input_name(name): value for name, value in example.state.items()})
    state: Tensors = example.state
    worst = 0.0
    for step in range(CHECKED_STEPS):
        fresh = make_example(module, inputs_alone, rows, 1000 * rows + step)
        given = Example(fresh.inputs, example.constants, {}, rows).graph_inputs()
        before = Example(fresh.inputs, example.constants, dict(state), rows)
        outputs, state = run_step(module, before, interface.outputs)
        found = run_graph(session, {**as_arrays(given), **carried})
        expected = {**outputs, **{state_output_name(name): value for name, value in state.items()}}
        worst = max(worst, compare(module, as_arrays(expected), found, f"with {rows} rows", f"at step {step}"))
        carried = {state_input_name(name): found[state_output_name(name)] for name in state}
    return worst


def check_independence(session: onnxruntime.InferenceSession, module: StepModule, interface: StepInterface) -> None:
    """Check that the bytes of a row do not depend on the other rows of its batch.

    Raises:
        ExportError: they do.
    """
    example = make_example(module, interface, max(CHECKED_ROWS), _INDEPENDENCE_SEED)
    check_parts(session, as_arrays(example.graph_inputs()))


def check_parts(session: onnxruntime.InferenceSession, everything: Arrays) -> None:
    """Check that any part of a batch has the results that it has in the whole batch, to the bit.

    Raises:
        ExportError: it has not.
    """
    whole = run_graph(session, everything)
    largest = len(next(iter(everything.values())))
    for rows in CHECKED_ROWS:
        for start in range(0, largest - rows + 1, rows):
            part = {name: value[start : start + rows] for name, value in everything.items()}
            for name, value in run_graph(session, part).items():
                if value.tobytes() != whole[name][start : start + rows].tobytes():
                    raise ExportError(
                        f"{name}: a row's value in a batch of {rows} is not its value in a batch of {largest}, so one "
                        "caller's result would depend on another's; does step() compute anything across the row axis?"
                    )


def compare(
    module: object, expected: Arrays, found: Arrays, batch: str, when: str = "", method: str = "step()"
) -> float:
    """Compare the results of a graph with those of torch.

    Args:
        module: the module that the graph was exported from.
        expected: torch's results; those that the graph does not have are ignored.
        found: the graph's results.
        batch: the batch, for error messages.
        when: the step, for error messages.
        method: the method that the graph was exported from, for error messages.

    Returns:
        The largest absolute difference.

    Raises:
        ExportError: a shape or a value differs.
    """
    worst = 0.0
    tolerance = _coarsest(module, _TOLERANCES, _TOLERANCE)
    for name, value in expected.items():
        if name not in found:
            continue
        if found[name].shape != value.shape:
            raise ExportError(
                f"{name}: {batch} the graph returns shape {found[name].shape}, torch {value.shape}: "
                f"is the number of rows fixed somewhere in {method}?"
            )
        exact = value.astype(np.float64)
        other = found[name].astype(np.float64)
        with np.errstate(invalid="ignore"):  # Equal infinities do not differ.
            difference = np.where(other == exact, 0.0, np.abs(other - exact))
            allowed = np.where(np.isinf(exact), 0.0, tolerance * np.maximum(1.0, np.abs(exact)))
        if not bool((difference <= allowed).all()):
            where = " ".join(filter(None, [batch, when]))
            raise ExportError(f"{name}: torch and onnxruntime differ by {difference.max():.3g} {where}")
        worst = max(worst, float(difference.max(initial=0.0)))
    return worst


def _coarsest(module: object, tolerances: Mapping[torch.dtype, float], usual: float) -> float:
    """The tolerance of the coarsest type among a module's weights and states."""
    kinds: set[torch.dtype] = set()
    if isinstance(module, nn.Module):
        kinds |= {value.dtype for value in (*module.parameters(), *module.buffers())}
    if isinstance(module, StepModule):
        kinds |= {value.dtype for value in module.initial_state(1).values()}
    return max((tolerances.get(kind, usual) for kind in kinds), default=usual)


def padding_difference(without: NDArray[Any], padded: NDArray[Any]) -> float:
    """The largest difference that padding makes; 0 if both are the same bytes, so NaNs are equal."""
    if without.tobytes() == padded.tobytes():
        return 0.0
    one, other = without.astype(np.float64), padded.astype(np.float64)
    with np.errstate(invalid="ignore"):  # Equal infinities do not differ.
        return float(np.where(one == other, 0.0, np.abs(one - other)).max())


def allow_padding(module: object, worst: float, message: str) -> float:
    """Allow a difference that another order of summation explains.

    Args:
        module: the module that the graph was exported from.
        worst: the largest difference that padding makes.
        message: the error message, with {} for the difference.

    Returns:
        The difference.

    Raises:
        ExportError: the difference is larger.
    """
    if not worst <= _coarsest(module, _PADDING_TOLERANCES, _PADDING_TOLERANCE):
        raise ExportError(message.format(f"{worst:.3g}"))
    return worst


def check_padding(session: onnxruntime.InferenceSession, module: StepModule, interface: StepInterface) -> float:
    """Check that zeros after the end of constants of variable length change nothing.

    Returns:
        The largest difference that they make.

    Raises:
        ExportError: the difference is too large.
    """
    variable = {constant_name(name) for name, kind in interface.constants.items() if kind.variable_length}
    worst = 0.0
    for rows in CHECKED_ROWS:
        feeds = as_arrays(make_example(module, interface, rows, rows).graph_inputs())
        plain = run_graph(session, feeds)
        longer = {
            name: np.pad(value, [(0, 0), (0, _PADDING), *[(0, 0)] * (value.ndim - 2)]) if name in variable else value
            for name, value in feeds.items()
        }
        for name, value in run_graph(session, longer).items():
            worst = max(worst, padding_difference(plain[name], value))
    return allow_padding(
        module,
        worst,
        "step(): zeros after the end of a source change a result by {}; constants of variable length must be masked, "
        "by a constant that is zero there",
    )
