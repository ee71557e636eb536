"""The proof that a graph is its module, and that a row of it is nobody else's business."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from export.contract import Input, StepModule, Tensors, Values
from export.errors import ExportError
from export.graph import (
    Arrays,
    Example,
    as_arrays,
    make_example,
    run_graph,
    run_step,
    state_input_name,
    state_output_name,
)

CHECKED_ROWS = (1, 2, 5, 8, 17, 64)
CHECKED_STEPS = 12
# float32 sums in another order: far above rounding, far below a wrong gate.
_TOLERANCE = 2e-4


def check_parity(
    session: onnxruntime.InferenceSession,
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
) -> float:
    """Run torch and onnxruntime side by side from a non-zero state, over several steps, at batch sizes not traced.

    Returns:
        The largest difference found.

    Raises:
        ExportError: they differ.
    """
    return max(_check_rows(session, module, inputs, constants, rows) for rows in CHECKED_ROWS)


def check_independence(
    session: onnxruntime.InferenceSession,
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
) -> None:
    """Check the promise that a row's bytes do not depend on the rows beside it.

    Raises:
        ExportError: they do.
    """
    largest = max(CHECKED_ROWS)
    check_parts(session, as_arrays(make_example(module, inputs, constants, largest, seed=7).graph_inputs()))


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
    rows: int,
) -> float:
    example = make_example(module, inputs, constants, rows, seed=rows)
    ours = as_arrays({state_input_name(name): value for name, value in example.state.items()})
    state: Tensors = example.state
    worst = 0.0
    for step in range(CHECKED_STEPS):
        fresh = make_example(module, inputs, constants, rows, seed=1000 * rows + step)
        outputs, state = run_step(module, Example(fresh.inputs, example.constants, dict(state)))
        given = Example(fresh.inputs, example.constants, {}).graph_inputs()
        found = run_graph(session, {**as_arrays(given), **ours})
        expected = {**outputs, **{state_output_name(name): value for name, value in state.items()}}
        worst = max(worst, compare(as_arrays(expected), found, f"with {rows} rows", f"at step {step}"))
        ours = {state_input_name(name): found[state_output_name(name)] for name in state}
    return worst


def compare(expected: Arrays, found: Arrays, batch: str, when: str) -> float:
    """Hold what a graph gives against what torch does; the largest difference.

    Args:
        expected: torch's values; those that the graph does not have are outputs that the manifest does not list.
        found: the graph's.
        batch: how many rows there are, for the message.
        when: at which step it is, likewise.

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
                "is the number of rows fixed somewhere in step()?"
            )
        difference = np.abs(found[name].astype(np.float64) - value.astype(np.float64))
        allowed = _TOLERANCE * np.maximum(1.0, np.abs(value.astype(np.float64)))
        if not bool((difference <= allowed).all()):
            raise ExportError(f"{name}: torch and onnxruntime differ by {difference.max():.3g} {batch} {when}")
        worst = max(worst, float(difference.max(initial=0.0)))
    return worst
