"""The command `tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cases.tasks import TASK_COLUMNS, TASK_LEGEND, gather_tasks
from benchmarks.commands.common import Output, print_written
from benchmarks.processes.machine import RESULTS
from benchmarks.report.tables import merge, print_table, rounded
from benchmarks.report.task_chart import draw_tasks


def tasks(
    run: Annotated[list[Path], typer.Argument(help="Folders of finished training runs, one per preset.")],
    output: Output = None,
) -> None:
    """Collect the final metrics of training runs of `elman train --preset NAME` and compare them with their floors.

    The metrics of other presets in the results are kept.
    """
    rows = gather_tasks(run)
    folder = output or RESULTS
    draw_tasks(merge(folder / "tasks.json", rows, ("preset", "metric")), folder / "tasks.png")
    print_table("Metrics of trained models", TASK_COLUMNS, rounded(rows), TASK_LEGEND)
    print_written(folder / "tasks.json", folder / "tasks.png")
