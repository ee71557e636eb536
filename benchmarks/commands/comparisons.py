"""Commands that compare servers with one another: `ablation` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from benchmarks.cases import comparison
from benchmarks.cases.ablation_variants import VARIANTS
from benchmarks.cases.comparison import ComparisonOptions
from benchmarks.commands.common import (
    ALL_PRECISIONS,
    Output,
    Precisions,
    Repeats,
    Seconds,
    print_written,
    results_folder,
)
from benchmarks.processes.server import Program
from benchmarks.report.columns import COMPARISON_COLUMNS, COMPARISON_LEGEND
from benchmarks.report.tables import merge, print_table, progress

Value = TypeVar("Value")
ComparisonCases = Annotated[list[str], typer.Option("--case", help="Case to measure; may be repeated.")]
_COMPARISON, _COMPARISON_CASES = ComparisonOptions(), list(comparison.CASES)
_VARIANTS = list(VARIANTS)


def ablation(
    variant: Annotated[
        list[str], typer.Option(help=f"Heuristic to disable: {', '.join(VARIANTS)}; may be repeated.")
    ] = _VARIANTS,
    case: ComparisonCases = _COMPARISON_CASES,
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _COMPARISON.repeats,
    seconds: Seconds = _COMPARISON.seconds,
    output: Output = None,
) -> None:
    """Compare the server with and without each heuristic, alternating. The variant none shows how large chance is."""
    names = {"elman": "none"} | {name: name for name in variant}
    programs = [Program(name, "benchmarks.processes.ablation_server", (disabled,)) for name, disabled in names.items()]
    options = ComparisonOptions(_once(precision), _once(case), repeats, seconds, restart=False)
    _compare(programs, options, output, "ablation.json", "With one heuristic disabled")


def compare(
    against: Annotated[Path, typer.Argument(help="Checkout of an earlier commit.", show_default=False)],
    module: Annotated[str, typer.Option(help="Module of its command line.")] = "elman.cli",
    case: ComparisonCases = _COMPARISON_CASES,
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _COMPARISON.repeats,
    seconds: Seconds = _COMPARISON.seconds,
    output: Output = None,
) -> None:
    """Compare this code with that of another checkout, alternating."""
    programs = [Program("before", module, checkout=against.resolve()), Program("now")]
    options = ComparisonOptions(_once(precision), _once(case), repeats, seconds)
    _compare(programs, options, output, "comparison.json", "Comparison of two checkouts")


def _once(values: Sequence[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))


def _compare(programs: list[Program], options: ComparisonOptions, output: Path | None, file: str, title: str) -> None:
    with progress(comparison.step_count(programs, options)) as advance:
        rows = comparison.compare(programs, options, advance)
    folder = results_folder(output, options.worth_keeping)
    merge(folder / file, rows, ("program", "precision", "case", "figure"))
    print_table(title, COMPARISON_COLUMNS, rows, COMPARISON_LEGEND)
    print_written(folder / file)
