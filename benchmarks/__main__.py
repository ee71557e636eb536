"""`python -m benchmarks`: run a benchmark, print its tables and write its results."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from benchmarks.commands import abuse, comparisons, models, sessions, streams, tasks
from benchmarks.processes.worker import MeasurementError

app = typer.Typer(
    help="Measure the server compared with onnxruntime alone. Results of runs with non-default options go to "
    "runs/benchmarks/results, so that those in the repository stay comparable. A run with fewer streams or precisions "
    "replaces only their rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    streams.serving,
    streams.cases,
    streams.growth,
    streams.decoding,
    models.trees,
    models.translations,
    sessions.sessions,
    comparisons.ablation,
    comparisons.compare,
    tasks.tasks,
    abuse.abuse,
):
    app.command()(command)


def _exit(number: int, frame: FrameType | None) -> None:
    # Raises SystemExit, so that context managers stop the servers.
    sys.exit(128 + number)


def main() -> None:
    """Run the command; print a failed measurement as an error without a traceback."""
    signal.signal(signal.SIGTERM, _exit)
    try:
        app()
    except MeasurementError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
