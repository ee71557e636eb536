"""The session stores to measure, created in a temporary folder and removed afterwards."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes.machine import SCRATCH
from benchmarks.processes.worker import MeasurementError, last_lines

MEMORY, CHECKPOINT, REDIS = "memory", "sqlite, fsync checkpoint", "redis, fsync every second"
_FSYNC = {"sqlite, fsync never": "never", CHECKPOINT: "checkpoint", "sqlite, fsync always": "always"}
_START_SECONDS = 10.0


@dataclass(frozen=True)
class Store:
    """A store that a server can be started on.

    Attributes:
        options: options of `elman serve`.
        pids: ids of the store's processes.
        file: the SQLite file, if the store has one.
    """

    options: tuple[str, ...]
    pids: tuple[int, ...] = ()
    file: Path | None = None

    @property
    def file_bytes(self) -> int:
        """Size of the file, including the write-ahead log."""
        return 0 if self.file is None else sum(path.stat().st_size for path in self.file.parent.iterdir())


def store_names() -> tuple[str, ...]:
    """Return the names of the available stores; Redis only where it is installed."""
    return (MEMORY, *_FSYNC, *((REDIS,) if _redis_program() else ()))


@contextlib.contextmanager
def make_store(name: str) -> Iterator[Store]:
    """Create an empty store.

    Raises:
        MeasurementError: the store could not be created.
    """
    if name == MEMORY:
        yield Store(("--store", "memory"))
        return
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="sessions-") as folder:
        if name == REDIS:
            with _redis(Path(folder)) as store:
                yield store
        else:
            file = Path(folder) / "sessions.db"
            yield Store(("--store", str(file), "--fsync", _FSYNC[name]), file=file)


def _redis_program() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[Store]:
    """Start a Redis server with an append-only file that is synchronized to disk every second, Redis's default."""
    port = _free_port()
    settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
    command = [
        _redis_program() or "",
        *(part for name, value in settings.items() for part in (f"--{name}", str(value))),
    ]
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
    try:
        _wait_until(lambda: _answers(port), process, log)
        yield Store(("--store", f"redis://127.0.0.1:{port}/0"), pids=(process.pid,))
    finally:
        process.terminate()
        process.wait()


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise MeasurementError(f"redis-server did not start; its log:\n{last_lines(log.read_text())}")
        time.sleep(0.02)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
