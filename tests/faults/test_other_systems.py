"""Where Python has no modules of Unix, as on Windows, `elman serve` says so in one sentence, and all else works."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from elman_bundle import Bundle
from tests.support.light_install import run_without
from tests.support.serving import serving

UNIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog"}
RUN = "import sys; sys.argv = ['elman', *{arguments!r}]\nfrom elman.cli import main\nmain()"
EXPORT = """
import torch
from elman_export import Labels, Values, export_bundle

class Sum(torch.nn.Module):
    def initial_state(self, rows):
        return {{"total": torch.zeros(rows, 2)}}

    def step(self, inputs, constants, state):
        total = state["total"] + inputs["x"]
        return {{"logits": total}}, {{"total": total}}

export_bundle(Sum(), {folder!r}, name="sum", inputs={{"x": Values((2,))}}, outputs={{"logits": Labels(("a", "b"))}})
"""


def elman_there(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_without(UNIX_MODULES, RUN.format(arguments=[str(one) for one in arguments]))


def test_serve_says_where_it_runs(bundles: Mapping[str, Bundle]) -> None:
    refused = elman_there("serve", bundles["lstm"].path)
    assert (refused.returncode, refused.stdout) == (1, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: elman serve runs on Linux and macOS; this system has no fcntl. On Windows, run")


@pytest.mark.parametrize("arguments", [("serve", "--show-settings")])
def test_help_and_settings_are_shown(arguments: tuple[str, ...]) -> None:
    shown = elman_there(*arguments)
    assert (shown.returncode, shown.stderr) == (0, "")


async def test_the_client_works(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["lstm"]) as running:
        arguments = ("generate", "ab", "--max-tokens", 5, "--seed", 1, "--server", running.address)
        generated = await asyncio.to_thread(elman_there, *arguments)
        text = await running.client.generate("ab", max_tokens=5, seed=1).text()
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.strip("\n") == text.strip("\n")


@pytest.mark.slow("a new interpreter loads torch")
def test_export_works(tmp_path: Path) -> None:
    exported = run_without(UNIX_MODULES, EXPORT.format(folder=str(tmp_path / "sum")))
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "sum" / "step.onnx").exists()
