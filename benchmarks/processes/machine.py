"""The machine: its description, the CPU time of processes, and the folders of results and models."""

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
# Git-ignored: the models of the benchmarks, and the results of runs with other than the default options.
SCRATCH = ROOT / "runs" / "benchmarks"
TRIALS = SCRATCH / "results"

_TICKS = os.sysconf("SC_CLK_TCK")
_PACKAGES = ("elman", "grpcio", "numpy", "onnxruntime-gpu", "onnxruntime", "protobuf", "torch")


def _core_count() -> int:
    # Imported here because the clients' process must not load onnxruntime.
    from elman_server.engine import core_count

    return core_count()


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used so far, user and system time."""
    # The command name is in parentheses and may contain any character.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Occupation:
    """Measures the CPU time used by unrelated processes since its creation, which makes figures unreliable.

    Args:
        pids: running processes that belong to the measurement; finished child processes are included anyway.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)
        self._started, self._busy, self._ours = time.perf_counter(), _busy_seconds(), self._own_seconds()

    def others_share(self) -> float:
        """Return the share of all cores that other processes used."""
        others = (_busy_seconds() - self._busy) - (self._own_seconds() - self._ours)
        return max(0.0, others) / ((time.perf_counter() - self._started) * _core_count())

    def _own_seconds(self) -> float:
        own = [resource.getrusage(scope) for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(used.ru_utime + used.ru_stime for used in own) + sum(map(cpu_seconds, self._pids))


def _busy_seconds() -> float:
    """Return the busy seconds of all cores, including time stolen by the hypervisor."""
    user, nice, system, _idle, _waiting, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts)) / _TICKS


def describe() -> dict[str, object]:
    """Return the machine, versions, date and commit that every result records."""
    return {
        "machine": {
            "cores": _core_count(),
            "cpu": _processor_field("model name") or platform.processor() or "unknown",
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


def _processor_field(field: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _vector_instructions() -> list[str]:
    """Return the instruction sets that determine the speed of matrix products; the CPU's model name does not."""
    flags = (_processor_field("flags") or "").split()
    return [flag for flag in flags if flag.startswith(("avx", "amx"))]


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except ModuleNotFoundError:  # Only one of the two builds of onnxruntime is installed.
            continue
    return versions
