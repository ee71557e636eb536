"""Servers that can be killed and started again, each in a process of its own and on a port of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
_START_SECONDS = 120.0
_END_SECONDS = 40.0
_COMMAND = ("-m", "elman.command_line")


class FleetError(Exception):
    """A server did not start. The message holds what it said."""


def free_port() -> int:
    """A port of the loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server: started, killed, started again, on the same port.

    Args:
        folder: for its logs.
        name: what they are called by.
        bundle: what it serves.
        options: for `elman serve`.
        command: what follows the interpreter's name; `elman` by default.
    """

    def __init__(
        self, folder: Path, name: str, bundle: Path, options: Sequence[str], command: Sequence[str] = _COMMAND
    ) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._log = folder / f"{name}.log"
        serve = ["serve", str(bundle), "--listen", self.address, "--provider", "cpu", "--log-format", "json"]
        self._command = [sys.executable, *command, *serve, *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0

    async def start(self) -> None:
        """Start it; returns when it listens.

        Raises:
            FleetError: it did not.
        """
        self._log.touch()
        seen = self._log.stat().st_size
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(  # noqa: ASYNC220 # it takes a moment only
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
        async with asyncio.timeout(_START_SECONDS):
            while not self._listens(seen):
                if self._process.poll() is not None:
                    raise FleetError(f"a server has ended with {self._process.returncode}:\n{self._tail()}")
                await asyncio.sleep(0.02)

    def _listens(self, seen: int) -> bool:
        with self._log.open("rb") as log:
            log.seek(seen)
            lines = log.read().decode(errors="replace").splitlines()
        return any(line.startswith("{") and line.endswith("}") and _event(line) == "listening" for line in lines)

    def kill(self) -> None:
        """End it as the kernel ends a process that has taken too much memory: at once, without a word."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tell_to_end(self) -> None:
        """End it as an orchestrator does: it drains."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> None:
        """Return when it has ended."""
        assert self._process is not None
        await asyncio.to_thread(self._process.wait, _END_SECONDS)

    def end(self) -> None:
        """End it, whatever it is doing."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def _event(line: str) -> object:
    try:
        return json.loads(line).get("event")
    except ValueError:
        return None
