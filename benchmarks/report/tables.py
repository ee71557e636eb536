"""Output for people and files: tables, targets, merging results into files, and a progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Rows = list[dict[str, Any]]
_WITHOUT_TERMINAL = 150
_DISTURBED = 0.05


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: text of the header cell.
        text: formats a row's cell.
    """

    heading: str
    text: Callable[[dict[str, Any]], str]


def figure(name: str, form: str = ",.0f") -> Callable[[dict[str, Any]], str]:
    """Return a formatter for a cell with one figure of the row."""
    return lambda row: format(row[name], form) if name in row else ""


def figures(form: str, *names: str) -> Callable[[dict[str, Any]], str]:
    """Return a formatter for a cell with several figures of the row."""
    return lambda row: " / ".join(format(row[name], form) for name in names) if names[0] in row else ""


@dataclass(frozen=True)
class Target:
    """A performance target: a bound on one figure of one row.

    Attributes:
        what: description for the table.
        where: the items that identify the row.
        name: name of the figure.
        bound: the bound.
        at_least: True if the bound is a minimum, False if it is a maximum.
    """

    what: str
    where: dict[str, Any]
    name: str
    bound: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _print(*parts: RenderableType) -> None:
    # Without a terminal, no width limit applies.
    console = Console(width=None if sys.stdout.isatty() else _WITHOUT_TERMINAL, highlight=False)
    for part in parts:
        console.print(part)


def print_table(title: str, columns: Sequence[Column], rows: Rows, legend: str) -> None:
    """Print a table with one line per row, followed by a legend of the columns."""
    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.heading, justify="right")
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    _print(f"[bold]{title}[/]", table, f"[dim]{legend}[/]\n")


def print_targets(targets: Sequence[Target], rows: Rows) -> None:
    """Print each target with its figure, its bound and whether it was met. A missed target is not an error."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("", "figure", "bound", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for target in targets:
        row = next((row for row in rows if target.where.items() <= row.items()), None)
        bound = f"{'at least' if target.at_least else 'at most'} {target.bound:.2f}"
        if row is None:
            table.add_row(target.what, "not measured", bound, "")
        else:
            met = target.met_by(row[target.name])
            verdict = "[green]met[/]" if met else "[bold red]missed[/]"
            table.add_row(target.what, f"{row[target.name]:.3f}", bound, verdict)
    _print("[bold]Targets[/]", table)


def print_disturbance(rows: Rows) -> None:
    """Print a warning if other processes used the cores during the measurement."""
    most = max(row["others_share_of_cores"] for row in rows)
    if most > _DISTURBED:
        _print(
            f"[bold red]Other processes used up to {most:.0%} of the cores during the measurement; the results are "
            "unreliable. Measure again on an idle machine.[/]"
        )


def merge(path: Path, rows: Rows, keys: Sequence[str]) -> Rows:
    """Merge rows into the file at `path`: rows with the same keys are replaced, all others are kept.

    Returns:
        All rows of the file after the merge.
    """

    def identity(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in keys)

    kept = json.loads(path.read_text()) if path.exists() else []
    merged = sorted({identity(row): row for row in [*kept, *rounded(rows)]}.values(), key=identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(merged, indent=1) + "\n")
    return merged


def rounded(value: Any) -> Any:
    """Round figures to four significant digits; further digits are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return value


@contextlib.contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar of `steps` steps; call the yielded function with the name of each step as it starts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=steps)
        started = False

        def advance(name: str) -> None:
            nonlocal started
            bar.update(task, description=name, advance=1 if started else 0)
            started = True

        yield advance
