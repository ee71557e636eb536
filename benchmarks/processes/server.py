"""A server as anybody starts it, in a process of its own: started, watched from outside, ended."""

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
_END_SECONDS = 20.0
# Of the line that says where it listens, what would be another at every run.
_FLEETING = ("event", "level", "timestamp", "address")
_PACKAGE_FOLDERS = ("bundle", "client", "export", "protos", "server", "training")


@dataclass(frozen=True)
class RunningServer:
    """A server that listens.

    Attributes:
        pid: its process.
        address: where it listens.
        settings: what it says of itself: its slots, its threads, how they wait.
    """

    pid: int
    address: str
    settings: dict[str, Any]

    def reset_peak_memory(self) -> None:
        """Forget the peak so far."""
        # Where this is refused, the peak is the largest since the start.
        with contextlib.suppress(PermissionError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_memory_mib(self) -> float:
        """The most memory that was resident since `reset_peak_memory`."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise MeasurementError("the system does not tell the peak memory of a process")


@dataclass(frozen=True)
class Program:
    """How a server is started.

    Attributes:
        name: for tables.
        module: the module that is run; it takes the arguments of the command `elman`.
        arguments: of the module, before those of `elman`.
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
    """A server of `bundles`, on any free port, with its own defaults as far as `options` say nothing else.

    Args:
        bundles: what it serves.
        slots: of each model.
        options: further options of `elman serve`.
        program: how it is started.

    Raises:
        MeasurementError: it did not start; its log is in the message.
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
            told = {name: value for name, value in settings.items() if name not in _FLEETING}
            yield RunningServer(process.pid, address, told)
        except MeasurementError as error:
            if process.poll() is None:
                raise
            raise MeasurementError(f"{error}\nThe server has ended; its log:\n{last_lines(log.read_text())}") from error
        finally:
            _end(process)


def _wait_until_listening(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            with contextlib.suppress(ValueError):  # A line that is not the log's own, or is not whole yet.
                said = json.loads(line)
                if isinstance(said, dict) and said.get("event") == "listening":
                    return said
        time.sleep(0.05)
    if process.poll() is not None:
        raise MeasurementError(f"the server did not start: it ended with {process.returncode}")
    raise MeasurementError(
        f"the server did not start within {_START_SECONDS:g} seconds; its log:\n{last_lines(log.read_text())}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
