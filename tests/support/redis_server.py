"""A real Redis on a free port of loopback: a process that can be frozen, killed and restarted."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tests.support.ports import free_port

_PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
_START_SECONDS = 10.0


def redis_is_installed() -> bool:
    """Whether Redis or Valkey is installed."""
    return _PROGRAM is not None


class RedisServer:
    """One redis-server.

    Args:
        folder: where it keeps its log and, if it does, its data.
        append_only: whether what it holds survives it.

    Attributes:
        port: where it listens, on loopback.
        url: its database 0.
    """

    def __init__(self, folder: Path, *, append_only: bool = False) -> None:
        self._folder = folder
        self._append_only = append_only
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Wait until it answers."""
        assert _PROGRAM is not None
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "logfile": self._folder / "redis.log",
            "save": "",
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "always",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen([_PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError):
            return bool(self.ask("PING"))
        return False

    def ask(self, *command: Any) -> Any:
        """Return the answer to a command that is sent on a new connection."""
        client: Any = Redis.from_url(self.url, socket_timeout=5.0, protocol=2)
        with contextlib.closing(client):
            return client.execute_command(*command)

    def freeze(self) -> None:
        """Accept connections, but do not answer."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process is not None:
            self.kill()


@contextmanager
def redis_running(folder: Path, *, append_only: bool = False) -> Iterator[RedisServer]:
    """A redis-server that runs for the duration of a block."""
    server = RedisServer(folder, append_only=append_only)
    try:
        server.start()
        yield server
    finally:
        server.close()
