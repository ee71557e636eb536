"""What a stranger relies on: light clients, stubs that match the protos, names that are exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import elman

ROOT = Path(__file__).parent.parent

_WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
{code}
"""


def run_without(absent: set[str], code: str) -> subprocess.CompletedProcess[str]:
    program = _WITHOUT.format(absent=absent, code=code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60)


# typer brings pydantic.
SERVER_PARTS = {"onnx", "onnxruntime", "structlog", "numpy", "safetensors", "llguidance", "tokenizers"}
TRAINING_PARTS = {"torch", "onnxscript", "matplotlib"}


def test_a_client_needs_neither_torch_nor_onnxruntime() -> None:
    code = "from elman import Client, ElmanError, v1; import elman.command_line.application; print('fine')"
    found = run_without(SERVER_PARTS | TRAINING_PARTS, code)
    assert found.stdout == "fine\n", found.stderr


def test_a_server_needs_no_torch() -> None:
    found = run_without(TRAINING_PARTS, "import server.application; print('fine')")
    assert found.stdout == "fine\n", found.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("['train']", "training"),
        ("['embeddings', 'x']", "training"),
        ("['export', 'x']", "training"),
        ("['serve', 'x']", "server"),
    ],
)
def test_a_missing_extra_is_named(command: str, extra: str) -> None:
    code = f"sys.argv = ['elman', *{command}]; from elman.command_line import main; main()"
    found = run_without(SERVER_PARTS | TRAINING_PARTS, code)
    assert found.returncode == 1
    assert f"pip install 'elman[{extra}]'" in found.stderr
    assert "Traceback" not in found.stderr


def test_every_exported_name_is_there() -> None:
    for name in elman.__all__:
        assert getattr(elman, name) is not None
    assert dir(elman) == elman.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        elman.nonsense  # noqa: B018


def test_a_folder_of_the_same_name_beside_a_script_is_not_taken_for_the_package(tmp_path: Path) -> None:
    """Who clones elman has such a folder."""
    (tmp_path / "elman").mkdir()
    script = tmp_path / "script.py"
    script.write_text("from elman import Client\n")
    found = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert found.returncode == 0, found.stderr


def test_stubs_are_made_from_the_protos(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", f"--python_out={tmp_path}"]
    services = [name for name in protos if name.endswith("_service.proto")]
    subprocess.run([*command, *protos], cwd=ROOT, check=True, timeout=60)
    subprocess.run([*command, f"--grpc_python_out={tmp_path}", *services], cwd=ROOT, check=True, timeout=60)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py"))
    assert made
    for path in made:
        assert (ROOT / path).read_text() == (tmp_path / path).read_text(), f"{path} is stale: run make protos"


def test_the_server_names_no_cell() -> None:
    for path in (ROOT / "server").rglob("*.py"):
        words = path.read_text().lower().replace("elman", "")
        assert not [cell for cell in ("lstm", "gru", "tanh", "sigmoid") if cell in words], path
