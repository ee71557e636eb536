"""What a person reads: tables, what must hold, results merged into their files, the progress of a run."""

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
        heading: what stands above it.
        text: a row's cell.
    """

    heading: str
    text: Callable[[dict[str, Any]], str]


def figure(name: str, form: str = ",.0f") -> Callable[[dict[str, Any]], str]:
    """A cell: one figure of the row."""
    return lambda row: format(row[name], form) if name in row else ""


def figures(form: str, *names: str) -> Callable[[dict[str, Any]], str]:
    """A cell: several figures of the row."""
    return lambda row: " / ".join(format(row[name], form) for name in names) if names[0] in row else ""


@dataclass(frozen=True)
class Promise:
    """What must hold at the end.

    Attributes:
        what: in words.
        where: the figures of a row that identify it.
        name: of the figure.
        bound: what it is held against.
        at_least: whether the bound is a floor, or else a ceiling.
    """

    what: str
    where: dict[str, Any]
    name: str
    bound: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _print(*parts: RenderableType) -> None:
    # Where there is no terminal there is no width to keep to.
    console = Console(width=None if sys.stdout.isatty() else _WITHOUT_TERMINAL, highlight=False)
    for part in parts:
        console.print(part)


def print_table(title: str, columns: Sequence[Column], rows: Rows, legend: str) -> None:
    """A row each, and below it what the columns mean."""
    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.heading, justify="right")
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    _print(f"[bold]{title}[/]", table, f"[dim]{legend}[/]\n")


def print_promises(promises: Sequence[Promise], rows: Rows) -> None:
    """For each promise the figure beside the bound, and whether it holds. Nothing fails here: this is no test."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("", "figure", "bound", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for promise in promises:
        row = next((row for row in rows if promise.where.items() <= row.items()), None)
        bound = f"{'at least' if promise.at_least else 'at most'} {promise.bound:.2f}"
        if row is None:
            table.add_row(promise.what, "not measured", bound, "")
        else:
            holds = promise.holds(row[promise.name])
            verdict = "[green]holds[/]" if holds else "[bold red]missed[/]"
            table.add_row(promise.what, f"{row[promise.name]:.3f}", bound, verdict)
    _print("[bold]What must hold[/]", table)


def print_disturbance(rows: Rows) -> None:
    """Say so if the figures were measured beside somebody else's work."""
    most = max(row["others_share_of_cores"] for row in rows)
    if most > _DISTURBED:
        _print(
            f"[bold red]Other processes used up to {most:.0%} of the cores meanwhile. Such figures say little: "
            "measure again where nothing else runs.[/]"
        )


def merge(path: Path, rows: Rows, keys: Sequence[str]) -> Rows:
    """Write rows to `path`: those there with the same keys are replaced, others stay.

    Returns:
        All rows now in the file.
    """

    def identity(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in keys)

    kept = json.loads(path.read_text()) if path.exists() else []
    together = sorted({identity(row): row for row in [*kept, *rounded(rows)]}.values(), key=identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(together, indent=1) + "\n")
    return together


def rounded(value: Any) -> Any:
    """Figures to four significant digits; more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return value


@contextlib.contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar of so many steps; call what it gives with the name of each step that begins."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=steps)
        begun = False

        def advance(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, advance=1 if begun else 0)
            begun = True

        yield advance
