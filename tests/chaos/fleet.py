"""What a trial starts, kills and starts again: servers and a balancer, each a process on a port of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.paths import ROOT
from tests.support.ports import free_port

_BALANCER_CONFIGURATION = ROOT / "deploy" / "nginx.conf"
_START_SECONDS = 120.0
_END_SECONDS = 40.0
_COMMAND = ("-m", "elman.cli")


class FleetError(Exception):
    """A process did not start. The message holds what it said."""


class Member(ABC):
    """A process that can be killed and started again, on the same port.

    Args:
        folder: for its log.
        name: what it is called by.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts it."""

    @abstractmethod
    def is_ready(self, said: str) -> bool:
        """Whether it serves, by what it has said since it was started."""

    async def start(self) -> None:
        """Start it; returns when it serves.

        Raises:
            FleetError: it does not.
        """
        self.log.touch()
        before = self.log.stat().st_size
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(  # noqa: ASYNC220 # It takes a moment only.
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
        async with asyncio.timeout(_START_SECONDS):
            while not self.is_ready(self.log.read_bytes()[before:].decode(errors="replace")):
                if self._process.poll() is not None:
                    said = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
                    raise FleetError(f"{self.command[0]} has ended with {self._process.returncode}:\n{said}")
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """End it as the kernel ends a process that has taken too much memory: at once, without a word."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def drain(self) -> None:
        """End it as an orchestrator does, which tells it before; returns when it has ended."""
        assert self._process is not None
        self._process.terminate()
        await asyncio.to_thread(self._process.wait, _END_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end()

    def end(self) -> None:
        """End it when the trial is over."""
        self.kill()


class Server(Member):
    """A server.

    Args:
        folder: for its log.
        name: what it is called by.
        bundle: what it serves.
        options: for `elman serve`.
        command: what follows the interpreter's name; `elman` by default.
    """

    def __init__(
        self, folder: Path, name: str, bundle: Path, options: Sequence[str], command: Sequence[str] = _COMMAND
    ) -> None:
        super().__init__(folder, name)
        serve = ["serve", str(bundle), "--listen", self.address, "--provider", "cpu", "--log-format", "json"]
        self._command = [sys.executable, *command, *serve, *options]

    @property
    def command(self) -> Sequence[str]:
        return self._command

    def is_ready(self, said: str) -> bool:
        return any(_event(line) == "listening" for line in said.splitlines())


class Balancer(Member):
    """nginx as deploy/nginx.conf has it, but for the addresses.

    Args:
        folder: for its configuration, its log and what it puts aside.
        servers: whom it stands before.
    """

    def __init__(self, folder: Path, servers: Sequence[Server]) -> None:
        super().__init__(folder, "balancer")
        text = _BALANCER_CONFIGURATION.read_text().replace("/tmp/", f"{folder}/nginx-")
        text = text.replace("listen 50050", f"listen {self.address}")
        line = re.search(r"^ *server server-1:50051(.*)$", text, re.MULTILINE)
        assert line is not None
        text = re.sub(r"^ *server server-\d:50051.*\n", "", text, flags=re.MULTILINE)
        lines = "".join(f"        server {server.address}{line[1]}\n" for server in servers)
        text = text.replace("consistent;\n", f"consistent;\n{lines}")
        self._configuration = folder / "nginx.conf"
        self._configuration.write_text(text)

    @staticmethod
    def is_installed() -> bool:
        """Whether there is an nginx."""
        return shutil.which("nginx") is not None

    @property
    def command(self) -> Sequence[str]:
        return ["nginx", "-c", str(self._configuration), "-p", str(self._configuration.parent), "-g", "daemon off;"]

    def is_ready(self, said: str) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        # Its workers would outlive a kill.
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


def _event(line: str) -> object:
    try:
        said = json.loads(line)
    except ValueError:  # It is not whole yet, or another's.
        return None
    return said.get("event") if isinstance(said, dict) else None
