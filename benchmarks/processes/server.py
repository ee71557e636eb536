"""Start, observe and stop a server process through its command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes.machine import ROOT
from benchmarks.processes.worker import MeasurementError, last_lines

_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
# Fields of the "listening" log record that differ between runs.
_VARYING_FIELDS = ("event", "level", "timestamp", "address")
_PACKAGE_FOLDERS = ("bundle", "client", "export", "protos", "server", "training")


@dataclass(frozen=True)
class RunningServer:
    """A listening server.

    Attributes:
        pid: its process id.
        address: its address.
        settings: the settings that it logs: slots, threads, how threads wait.
    """

    pid: int
    address: str
    settings: dict[str, Any]

    def reset_peak_memory(self) -> None:
        """Reset the peak of resident memory."""
        # If the system denies this, the peak is the one since the start of the process.
        with contextlib.suppress(PermissionError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_memory_mib(self) -> float:
        """Return the peak of resident memory since `reset_peak_memory`, in MiB."""
        return self._memory_mib("VmHWM")

    def memory_mib(self) -> float:
        """Return the resident memory, in MiB."""
        return self._memory_mib("VmRSS")

    def _memory_mib(self, name: str) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise MeasurementError(f"/proc/PID/status: {name} is missing; cannot measure the memory of a process")


@dataclass(frozen=True)
class Program:
    """How to start a server.

    Attributes:
        name: its name in tables.
        module: the module to run; it takes the arguments of the command `elman`.
        arguments: arguments that precede those of `elman`.
        checkout: the checkout whose code is run.
    """

    name: str = "elman"
    module: str = "elman.cli"
    arguments: tuple[str, ...] = ()
    checkout: Path = ROOT

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the checkout's own packages are imported."""
        folders = [self.checkout / name for name in (".", *_PACKAGE_FOLDERS)]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


ELMAN = Program()


@contextlib.contextmanager
def run_server(
    bundles: Sequence[Path], *, slots: int, options: Sequence[str] = (), program: Program = ELMAN
) -> Iterator[RunningServer]:
    """Run a server of `bundles` on a free port, with default settings except for `options`.

    Args:
        bundles: the bundles that it serves.
        slots: number of slots of each model.
        options: further options of `elman serve`.
        program: how to start it.

    Raises:
        MeasurementError: it did not start; the message contains its log.
    """
    command = [sys.executable, "-m", program.module, *program.arguments, "serve", *map(str, bundles)]
    command += ["--listen", "127.0.0.1:0", "--provider", "cpu", "--slots", str(slots), "--log-format", "json", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=program.checkout,
                env=program.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        try:
            settings = _wait_until_listening(process, log)
            address = str(settings["address"])
            stable_settings = {name: value for name, value in settings.items() if name not in _VARYING_FIELDS}
            yield RunningServer(process.pid, address, stable_settings)
        except MeasurementError as error:
            if process.poll() is None:
                raise
            raise MeasurementError(
                f"{error}\nThe server has exited; its log:\n{last_lines(log.read_text())}"
            ) from error
        finally:
            _stop(process)


def _wait_until_listening(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            with contextlib.suppress(ValueError):  # Not a log record, or not complete yet.
                record = json.loads(line)
                if isinstance(record, dict) and record.get("event") == "listening":
                    return record
        time.sleep(0.05)
    if process.poll() is not None:
        raise MeasurementError(f"the server did not start: it exited with status {process.returncode}")
    raise MeasurementError(
        f"the server did not start within {_START_SECONDS:g} seconds; its log:\n{last_lines(log.read_text())}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
