"""Measurements in separate processes: the order is passed as JSON on standard input, the result on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.processes.machine import ROOT

Json = dict[str, Any]
_SHOWN_LINES = 30


class MeasurementError(Exception):
    """A measurement failed; the message contains the output of the process that failed."""


def measure(module: str, order: Mapping[str, Any]) -> Json:
    """Run `python -m module` with the order on standard input and return the result that it prints.

    Raises:
        MeasurementError: the process failed.
    """
    command = [sys.executable, "-m", module]
    process = subprocess.run(
        command, cwd=ROOT, input=json.dumps(order), capture_output=True, encoding="utf-8", check=False
    )
    if process.returncode:
        raise MeasurementError(f"{module} exited with status {process.returncode}:\n{last_lines(process.stderr)}")
    result: Json = json.loads(process.stdout)
    return result


def answer(measurement: Callable[[Json], Json]) -> None:
    """Run in the process that `measure` starts: read the order, measure, and print the result."""
    json.dump(measurement(json.load(sys.stdin)), sys.stdout)


def last_lines(text: str) -> str:
    """Return the last lines of a log."""
    return "\n".join(text.rstrip().splitlines()[-_SHOWN_LINES:])
