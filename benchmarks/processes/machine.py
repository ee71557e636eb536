"""The machine: what a result was measured on, what a process has used of it, where results and models are kept."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Git-ignored: models made for the benchmarks, and the results of runs too short to be kept.
SCRATCH = ROOT / "runs" / "benchmarks"
TRIALS = SCRATCH / "results"

_TICKS = os.sysconf("SC_CLK_TCK")
_PACKAGES = ("elman", "grpcio", "numpy", "onnxruntime-gpu", "onnxruntime", "protobuf", "torch")


def _core_count() -> int:
    # Not on top: the clients' process is to load no onnxruntime.
    from elman_server.engine import core_count

    return core_count()


def cpu_seconds(pid: int) -> float:
    """Seconds of a core that a process has used so far, the system's part included."""
    # The command's name stands in brackets and may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Occupation:
    """How much of the cores processes that are not ours have used since this was made: figures from a machine that
    others worked on are to be read with care.

    Args:
        pids: processes of ours that still run; those that this one has started and that have ended are counted anyway.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)
        self._started, self._busy, self._ours = time.perf_counter(), _busy_seconds(), self._own_seconds()

    def others_share(self) -> float:
        """As a share of all cores."""
        others = (_busy_seconds() - self._busy) - (self._own_seconds() - self._ours)
        return max(0.0, others) / ((time.perf_counter() - self._started) * _core_count())

    def _own_seconds(self) -> float:
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(used.ru_utime + used.ru_stime for used in ours) + sum(map(cpu_seconds, self._pids))


def _busy_seconds() -> float:
    """Of all cores and all processes, and what the machine's host kept for itself."""
    user, nice, system, _idle, _waiting, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts)) / _TICKS


def describe() -> dict[str, object]:
    """The machine, the versions, the day and the commit, as they stand in every result."""
    return {
        "machine": {
            "cores": _core_count(),
            "cpu": _of_the_processor("model name") or platform.processor() or "unknown",
            "vector_instructions": _vector_instructions(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "measured_on": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the measured code, marked where files have changed since; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=7", "--dirty=, changed"]
    described = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return described.stdout.strip() or "unknown"


def _of_the_processor(field: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _vector_instructions() -> list[str]:
    """Those that decide how fast products are. Two virtual machines of one model name may differ in them."""
    flags = (_of_the_processor("flags") or "").split()
    return [flag for flag in flags if flag.startswith(("avx", "amx"))]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:  # Of the two builds of onnxruntime one is there.
            continue
    return found
