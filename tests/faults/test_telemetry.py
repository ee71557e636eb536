"""onnxruntime reports to its vendor; no process of elman lets it: no file in the cache folder, no thread for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from elman_bundle import Bundle
from tests.support.command_line import Served, elman

OPEN = """
import os, sys, time
{imports}
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
time.sleep(0.5)
"""


SWITCHED_OFF_BY = [
    "ORT_DISABLE_TELEMETRY",
    # Services of continuous integration, where onnxruntime reports nothing by itself.
    "CI",
    "TF_BUILD",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "CIRCLECI",
    "TRAVIS",
    "JENKINS_URL",
    "CODEBUILD_BUILD_ID",
    "BUILDKITE",
    "TEAMCITY_VERSION",
    "APPVEYOR",
    "BITBUCKET_BUILD_NUMBER",
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of processes that this test starts, which inherit nothing that switches telemetry off."""
    for variable in SWITCHED_OFF_BY:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def files_of(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "onnxruntime" in str(path.relative_to(folder))]


def open_graph_with(imports: str, bundle: Bundle) -> None:
    subprocess.run([sys.executable, "-c", OPEN.format(imports=imports), str(bundle.graph_path)], check=True, timeout=60)


@pytest.mark.parametrize("package", ["elman_server", "elman_export", "benchmarks", "elman_server.engine"])
def test_packages_switch_telemetry_off(package: str, bundles: Mapping[str, Bundle], cache: Path) -> None:
    open_graph_with(f"sys.path.insert(0, {os.getcwd()!r}); import {package}", bundles["gru"])
    assert files_of(cache) == []


def test_a_server_reports_nothing(bundles: Mapping[str, Bundle], cache: Path) -> None:
    served = Served(bundles["gru"].path, "--provider", "cpu")
    assert elman("generate", "a", "--max-tokens", 3, "--server", served.address).returncode == 0
    assert served.end() == 0
    assert files_of(cache) == []


def test_without_them_it_reports(bundles: Mapping[str, Bundle], cache: Path) -> None:
    """If this fails, onnxruntime has changed, and these tests see nothing any more."""
    open_graph_with("", bundles["gru"])
    assert "onnxruntime.db" in files_of(cache)
