"""The check that the results of a row depend on nothing but the row: not on other rows, on its place, or on chance.

The criterion is exact where it can be. On the CPU, equal inputs of equal shapes take the same path through the same
kernels, so a row that shares a batch of the same size with other rows must have the same bits: any difference is an
operator that computes across rows. Batches of other sizes take other kernels, which may add in another order: there a
difference up to `_ROUNDING` is allowed, and logged.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import structlog
from numpy.typing import NDArray

from elman_server.engine.interface import Arrays
from elman_server.engine.trials.culprits import Culprit, find_culprit
from elman_server.engine.trials.graph import TrialGraph
from elman_server.errors import EngineError, ModelLoadError

ROWS = 8
# Any two rows differ in one of these bits of their index: in one of the mixed batches each has another neighbour.
_BITS = (1, 2, 4)
_LOUD = (1e3, np.inf)  # factors of the numbers of loud rows
# Relative to values above 1; a float32 sum in another order differs far less, and rows or padding that are read far
# more.
_ROUNDING = {"float32": 1e-2, "float16": 5e-2}
_RULE = "a request must get the same answer whatever else is in its batch"

_log = structlog.get_logger(__name__)


def check_neighbours(graph: TrialGraph, first: Arrays, second: Arrays) -> list[Arrays]:
    """Check that rows have the same bits in two runs, and next to other rows.

    Args:
        graph: the graph.
        first: by input name, [ROWS, ...].
        second: the same for other rows.

    Returns:
        The results of both.

    Raises:
        ModelLoadError: they have not; names the output, and the node if it can be found.
        EngineError: onnxruntime failed.
    """
    found: list[Arrays] = [graph.run(first), graph.run(second)]
    _compare(graph, found[0], graph.run(first), np.ones(ROWS, np.bool_), (first, first))
    for of_second in _halves():
        mixed = _mixed(of_second, first, second)
        among = graph.run(mixed)
        _compare(graph, found[0], among, ~of_second, (first, mixed))
        _compare(graph, found[1], among, of_second, (second, mixed))
    return found


def check_loud_neighbours(graph: TrialGraph, first: Arrays, second: Arrays) -> None:
    """Check that rows have the same bits next to rows with very large or infinite numbers.

    Args:
        graph: the graph.
        first: by input name, [ROWS, ...].
        second: the same for the other rows, whose floating-point numbers are made loud.

    Raises:
        ModelLoadError: they have not.
        EngineError: onnxruntime failed.
    """
    expected = graph.run(first)
    for factor in _LOUD:
        with np.errstate(all="ignore"):
            loud = {name: _louder(value, factor) for name, value in second.items()}
        for half in _halves():
            for of_loud in (half, ~half):
                mixed = _mixed(of_loud, first, loud)
                try:
                    found = graph.run(mixed)
                except EngineError:  # Such as an index that is computed of such a number: no result, no difference.
                    return
                _compare(graph, expected, found, ~of_loud, (first, mixed))


def check_rounding(graph: TrialGraph, alone: Arrays, among: Arrays, what: str) -> None:
    """Check that rows have the same results up to rounding when shapes or places are others.

    Args:
        graph: the graph, for messages.
        alone: results by output name, [rows, ...].
        among: the results of the same rows in other company.
        what: what the results depend on if they differ, for messages.

    Raises:
        ModelLoadError: they have not.
    """
    largest = 0.0
    for name, value in among.items():
        if value.tobytes() == alone[name].tobytes():
            continue
        exact, other = (array.astype(np.float64) for array in (value, alone[name]))
        with np.errstate(all="ignore"):
            difference = np.where((exact == other) | (np.isnan(exact) & np.isnan(other)), 0.0, np.abs(exact - other))
            relative = float((difference / np.maximum(1.0, np.abs(exact))).max(initial=0.0))
        if not relative <= _ROUNDING.get(str(value.dtype), 0.0):
            raise ModelLoadError(
                f"{graph.path}: output {name!r}: the values of a row change by {relative:.2g} with {what}; {_RULE}. "
                "Compute nothing that depends on it"
            )
        largest = max(largest, relative)
    if largest:
        _log.info("rounds by batch", graph=graph.path.name, depends_on=what, largest_difference=float(f"{largest:.1e}"))


def _compare(
    graph: TrialGraph, expected: Arrays, found: Arrays, rows: NDArray[np.bool_], runs: tuple[Arrays, Arrays]
) -> None:
    """Compare the results of two runs to the bit.

    Args:
        graph: the graph.
        expected: by output name, [ROWS, ...].
        found: the same from the other run.
        rows: bool, the rows whose inputs are equal in both.
        runs: the inputs of both.
    """
    for name, value in expected.items():
        if value[rows].tobytes() == found[name][rows].tobytes():
            continue
        repeated = runs[0] is runs[1]
        culprit = find_culprit(graph, runs, rows)
        how = "change from run to run with the same inputs" if repeated else "change with the other rows of its batch"
        raise ModelLoadError(
            f"{graph.path}: output {name!r}: the values of a row {how}; {_RULE}. {_advice(culprit, repeated)}"
        )


def _advice(culprit: Culprit | None, repeated: bool) -> str:
    if culprit is not None:
        return f"This begins at {culprit.node}. {culprit.remedy}"
    return f"{'Compute nothing at random' if repeated else 'Compute nothing across the row axis'}"


def _halves() -> Iterator[NDArray[np.bool_]]:
    for bit in _BITS:
        yield np.arange(ROWS) & bit > 0


def _mixed(of_second: NDArray[np.bool_], first: Arrays, second: Arrays) -> Arrays:
    """A batch with some of its rows from another one."""

    def mix(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.generic]:
        value = one.copy()
        value[of_second] = other[of_second]
        return value

    return {name: mix(value, second[name]) for name, value in first.items()}


def _louder(value: NDArray[np.generic], factor: float) -> NDArray[np.generic]:
    if not np.issubdtype(value.dtype, np.floating):
        return value
    return (value.astype(np.float64) * factor).astype(value.dtype)
