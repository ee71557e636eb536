"""Options that several commands share, and the folder that results are written to."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.processes.machine import RESULTS, ROOT, TRIALS


class Precision(StrEnum):
    fp32 = "fp32"
    int8 = "int8"


Precisions = Annotated[list[Precision], typer.Option("--precision", help="Precision of the bundle; may be repeated.")]
Repeats = Annotated[int, typer.Option(help="Repeats; medians are reported.", min=1)]
Connections = Annotated[int, typer.Option(help="Connections that the streams share.", min=1)]
MinimumSeconds = Annotated[float, typer.Option(help="Minimum duration of each measurement in seconds.")]
Seconds = Annotated[float, typer.Option(help="Approximate duration of each measurement in seconds.")]
ServerOptions = Annotated[
    list[str],
    typer.Option("--server-option", help="Option of `elman serve`, such as --threads=1; may be repeated."),
]
Output = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default=False)]

ALL_PRECISIONS = list(Precision)
NO_OPTIONS: list[str] = []


def results_folder(output: Path | None, worth_keeping: bool) -> Path:
    """Return `output`, or by default the repository's results folder if the results are comparable with those there."""
    return output or (RESULTS if worth_keeping else TRIALS)


def print_written(*paths: Path) -> None:
    """Print the paths of written files, relative to the repository where possible."""
    for path in paths:
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        typer.echo(f"written: {shown}")
