"""What is measured runs in processes of its own: an order goes in as JSON, the findings come out as JSON."""

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
    """Something could not be measured. The message holds what the process in question said."""


def measure(module: str, order: Mapping[str, Any]) -> Json:
    """Run `python -m module`, give it the order on standard input, return what it prints.

    Raises:
        MeasurementError: it failed.
    """
    command = [sys.executable, "-m", module]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(order), capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise MeasurementError(f"{module} ended with {done.returncode}:\n{last_lines(done.stderr)}")
    found: Json = json.loads(done.stdout)
    return found


def answer(measurement: Callable[[Json], Json]) -> None:
    """The other side of `measure`."""
    json.dump(measurement(json.load(sys.stdin)), sys.stdout)


def last_lines(text: str) -> str:
    """The end of a log, which tells most."""
    return "\n".join(text.rstrip().splitlines()[-_SHOWN_LINES:])
