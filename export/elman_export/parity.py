"""The proof that a graph is its module, and that a row of it is nobody else's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_export.contract import Input, Source, StepModule, Tensors, Values
from elman_export.export_error import ExportError
from elman_export.graph import (
    Arrays,
    Example,
    as_arrays,
    constant_name,
    make_example,
    run_graph,
    run_step,
    state_input_name,
    state_output_name,
)

CHECKED_ROWS = (1, 2, 5, 8, 17, 64)
CHECKED_STEPS = 12
_PADDING = 37  # positions; no multiple of what a processor takes at once
# float32 sums in another order: far above rounding, far below a wrong gate.
_TOLERANCE = 2e-4
_PADDING_TOLERANCE = 1e-6  # what a sum over padded positions may do in another order


def check_parity(
    session: onnxruntime.InferenceSession,
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
    source: Source | None = None,
) -> float:
    """Run torch and onnxruntime side by side from a non-zero state, over several steps, at batch sizes not traced.

    Returns:
        The largest difference found.

    Raises:
        ExportError: they differ.
    """
    return max(_check_rows(session, module, inputs, constants, source, rows) for rows in CHECKED_ROWS)


def check_independence(
    session: onnxruntime.InferenceSession,
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
    source: Source | None = None,
) -> None:
    """Check the promise that a row's bytes do not depend on the rows beside it.

    Raises:
        ExportError: they do.
    """
    largest = max(CHECKED_ROWS)
    check_parts(session, as_arrays(make_example(module, inputs, constants, largest, 7, source).graph_inputs()))


def check_parts(session: onnxruntime.InferenceSession, everything: Arrays) -> None:
    """Check that all rows together bring what some of them bring alone, to the bit.

    Raises:
        ExportError: they do not.
    """
    together = run_graph(session, everything)
    largest = len(next(iter(everything.values())))
    for rows in CHECKED_ROWS:
        for start in range(0, largest - rows + 1, rows):
            part = {name: value[start : start + rows] for name, value in everything.items()}
            for name, value in run_graph(session, part).items():
                if value.tobytes() != together[name][start : start + rows].tobytes():
                    raise ExportError(
                        f"{name}: a row's value in a batch of {rows} is not its value in a batch of {largest}, so one "
                        "caller's result would depend on another's; does step() compute anything across the row axis?"
                    )


def _check_rows(
    session: onnxruntime.InferenceSession,
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
    source: Source | None,
    rows: int,
) -> float:
    example = make_example(module, inputs, constants, rows, rows, source)
    ours = as_arrays({state_input_name(name): value for name, value in example.state.items()})
    state: Tensors = example.state
    worst = 0.0
    for step in range(CHECKED_STEPS):
        fresh = make_example(module, inputs, {}, rows, 1000 * rows + step)
        outputs, state = run_step(module, Example(fresh.inputs, example.constants, dict(state)))
        given = Example(fresh.inputs, example.constants, {}).graph_inputs()
        found = run_graph(session, {**as_arrays(given), **ours})
        expected = {**outputs, **{state_output_name(name): value for name, value in state.items()}}
        worst = max(worst, compare(as_arrays(expected), found, f"with {rows} rows", f"at step {step}"))
        ours = {state_input_name(name): found[state_output_name(name)] for name in state}
    return worst


def compare(expected: Arrays, found: Arrays, batch: str, when: str = "", method: str = "step()") -> float:
    """Hold what a graph gives against what torch does; the largest difference.

    Args:
        expected: torch's values; those that the graph does not have are outputs that the manifest does not list.
        found: the graph's.
        batch: how many rows there are, for the message.
        when: at which step it is, likewise.
        method: what the graph was made of, likewise.

    Raises:
        ExportError: they differ.
    """
    worst = 0.0
    for name, value in expected.items():
        if name not in found:
            continue
        if found[name].shape != value.shape:
            raise ExportError(
                f"{name}: {batch} the graph gives shape {found[name].shape}, torch {value.shape}: "
                f"is the number of rows fixed somewhere in {method}?"
            )
        exact = value.astype(np.float64)
        difference = np.abs(found[name].astype(np.float64) - exact)
        if not bool((difference <= _TOLERANCE * np.maximum(1.0, np.abs(exact))).all()):
            where = " ".join(filter(None, [batch, when]))
            raise ExportError(f"{name}: torch and onnxruntime differ by {difference.max():.3g} {where}")
        worst = max(worst, float(difference.max(initial=0.0)))
    return worst


def padding_difference(without: NDArray[Any], beside: NDArray[Any]) -> float:
    """The largest difference that padding makes: 0 where both are the same bytes, so that not-a-numbers are alike."""
    if without.tobytes() == beside.tobytes():
        return 0.0
    return float(np.abs(without.astype(np.float64) - beside.astype(np.float64)).max())


def allow_padding(worst: float, complaint: str) -> float:
    """The largest difference that padding makes, if a sum in another order explains it.

    Args:
        worst: that difference.
        complaint: what to say if not, with {} for the difference.

    Raises:
        ExportError: it does not.
    """
    if not worst <= _PADDING_TOLERANCE:
        raise ExportError(complaint.format(f"{worst:.3g}"))
    return worst


def check_padding(
    session: onnxruntime.InferenceSession,
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
    source: Source,
) -> float:
    """Check that zeros behind the end of what an encoder gives change nothing.

    Returns:
        The largest difference that they make, 0 where they make none.

    Raises:
        ExportError: they do.
    """
    variable = {constant_name(name) for name, kind in constants.items() if kind.variable_length}
    worst = 0.0
    for rows in CHECKED_ROWS:
        feeds = as_arrays(make_example(module, inputs, constants, rows, rows, source).graph_inputs())
        plain = run_graph(session, feeds)
        longer = {
            name: np.pad(value, [(0, 0), (0, _PADDING), *[(0, 0)] * (value.ndim - 2)]) if name in variable else value
            for name, value in feeds.items()
        }
        for name, value in run_graph(session, longer).items():
            worst = max(worst, padding_difference(plain[name], value))
    return allow_padding(
        worst,
        "step(): zeros behind the end of a source change a result by {}; constants of variable length must be masked, "
        "by a constant that is zero there",
    )
