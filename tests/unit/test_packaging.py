"""The installed packages: light clients, stubs that match the protos, exported names."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import elman
import elman_protos.v1
from tests.support.light_install import SERVER_PARTS, run_without
from tests.support.paths import ROOT

TRAINING_PARTS = {"torch", "onnxscript", "matplotlib"}


def test_client_needs_neither_torch_nor_onnxruntime() -> None:
    code = "from elman import Client, ElmanError; import elman.cli.application; print('fine')"
    result = run_without(SERVER_PARTS | TRAINING_PARTS, code)
    assert result.stdout == "fine\n", result.stderr


def test_server_does_not_need_torch() -> None:
    result = run_without(TRAINING_PARTS, "import elman_server.application; print('fine')")
    assert result.stdout == "fine\n", result.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("['train']", "training"),
        ("['embeddings', 'x']", "training"),
        ("['export', 'x']", "training"),
        ("['serve', 'x']", "server"),
    ],
)
def test_missing_extra_is_named(command: str, extra: str) -> None:
    code = f"sys.argv = ['elman', *{command}]; from elman.cli import main; main()"
    result = run_without(SERVER_PARTS | TRAINING_PARTS, code)
    assert result.returncode == 1
    assert f"pip install 'elman[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_exported_name_exists() -> None:
    for name in elman.__all__:
        assert getattr(elman, name) is not None
    assert dir(elman) == elman.__all__
    assert elman.v1 is elman_protos.v1
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        elman.nonsense  # noqa: B018


def test_folder_named_elman_does_not_shadow_the_package(tmp_path: Path) -> None:
    """A checkout of elman contains such a folder."""
    (tmp_path / "elman").mkdir()
    script = tmp_path / "script.py"
    script.write_text("from elman import Client\n")
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr


def test_stubs_do_not_import_the_client_or_the_server() -> None:
    code = "from elman_protos import v1; v1.InferenceServiceStub; print('fine')"
    result = run_without({"elman", "elman_server", "elman_bundle", *SERVER_PARTS, *TRAINING_PARTS}, code)
    assert result.stdout == "fine\n", result.stderr


def test_stubs_match_the_protos(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = module.generate(tmp_path, stubs=False)
    assert written
    for path in written:
        kept = ROOT / "protos" / "elman_protos" / path.relative_to(tmp_path)
        assert kept.read_text() == path.read_text(), f"{kept} is stale: run make protos"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, ROOT], check=True, capture_output=True, timeout=110)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_installs_only_names_that_start_with_elman(wheel: zipfile.ZipFile) -> None:
    names = {name.partition("/")[0] for name in wheel.namelist()}
    packages = {f"elman_{name}" for name in ("bundle", "export", "protos", "server", "training")} | {"elman"}
    assert {name for name in names if not name.endswith(".dist-info")} == packages
    assert all(f"{package}/py.typed" in wheel.namelist() for package in packages)


def test_installed_wheel_works_in_any_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    code = "import elman, elman_protos.v1, elman_server.application; print(elman.__file__, elman.Client.__module__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", env=environment, timeout=60
    )
    assert result.stdout.split() == [str(tmp_path / "installed" / "elman" / "__init__.py"), "elman.client"], (
        result.stderr
    )


def test_server_code_names_no_cell() -> None:
    for path in (ROOT / "server").rglob("*.py"):
        words = path.read_text().lower().replace("elman", "")
        words = words.replace('{"softmax", "sigmoid"}', "")  # The operators whose outputs are refused.
        assert not [cell for cell in ("lstm", "gru", "tanh", "sigmoid") if cell in words], path
