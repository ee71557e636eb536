"""The command line: `elman` runs a command to its end, `Served` is a running `elman serve`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

from elman.cli import main

ELMAN = [sys.executable, "-m", "elman.cli"]
_TIMEOUT = 100.0  # seconds


def elman(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a separate process.

    The process is forked from one that has imported every package. With `environment` it is a new interpreter, because
    some variables are read when packages are imported.
    """
    command = ["elman", *map(str, arguments)]
    if environment:
        return subprocess.run(
            [*ELMAN, *command[1:]],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=_TIMEOUT,
            env={**os.environ, "COLUMNS": "200", **environment},
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        paths[0].write_text(stdin, encoding="utf-8")
        process = _fork_server().Process(target=_run, args=(command, paths, dict(os.environ), Path.cwd()))
        process.start()
        process.join(_TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, _TIMEOUT)
        shown = [path.read_text(encoding="utf-8") if path.exists() else "" for path in paths[1:]]
        result = subprocess.CompletedProcess(command, process.exitcode, *shown)
        process.close()
        return result


@cache
def _fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["elman.cli.application", "elman_export", "elman_server.application"])
    return context


def _run(command: list[str], paths: list[Path], environment: dict[str, str], folder: Path) -> None:
    """Run in the forked process: become the command, with files as its standard streams."""
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (path, flag) in enumerate(zip(paths, flags, strict=True)):
        os.dup2(os.open(path, flag), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= {**environment, "COLUMNS": "200"}
    sys.argv = command
    main()


def check_failure(result: subprocess.CompletedProcess[str], error_message: str) -> None:
    """Check that a command failed with an error text on standard error, without a traceback, and printed nothing."""
    assert result.returncode != 0
    assert error_message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


class Served:
    """`elman serve` as a separate process. Its log goes to a file: a full pipe would stop it."""

    def __init__(self, *arguments: object, until: str = "listening") -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 # closed by `end`
        self.process = subprocess.Popen(
            [*ELMAN, "serve", *map(str, arguments), "--listen", "127.0.0.1:0", "--log-format", "json"],
            stderr=self._log,
        )
        self.log: list[str] = []
        line = self._wait_for(f'"event": "{until}"')
        self.address = line.split('"address": "')[1].split('"')[0] if until == "listening" else ""

    def _wait_for(self, event: str) -> str:
        deadline = time.monotonic() + _TIMEOUT
        while time.monotonic() < deadline:
            has_ended = self.process.poll() is not None
            for line in self._read():
                if event in line:
                    return line
            if has_ended:
                break
            time.sleep(0.02)
        raise AssertionError("".join(self.log))

    def _read(self) -> list[str]:
        self._log.seek(0)
        self.log[:] = self._log
        return self.log

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, read the rest of the log and return the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(timeout=100)
        self._read()
        self._log.close()
        return status
