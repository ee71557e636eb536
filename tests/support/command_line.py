"""The command line as a process: `elman` runs a command to its end, `Served` is a running `elman serve`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

ELMAN = [sys.executable, "-m", "elman.cli"]


def elman(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ELMAN, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def check_complaint(found: subprocess.CompletedProcess[str], complaint: str) -> None:
    assert found.returncode != 0
    assert complaint in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


class Served:
    """`elman serve` as a process of its own."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [*ELMAN, "serve", *map(str, arguments), "--listen", "127.0.0.1:0", "--log-format", "json"],
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.log: list[str] = []
        self.address = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if '"listening"' in line:
                self.address = line.split('"address": "')[1].split('"')[0]
                return
        raise AssertionError("".join(self.log))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)
        self.process.stderr.close()
        return self.process.wait(timeout=30)
