"""Code that runs where some packages are not installed."""

from __future__ import annotations

import subprocess
import sys

_WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
{code}
"""


# typer depends on pydantic, so a client has it, too.
SERVER_PARTS = {
    "onnx", "onnxruntime", "structlog", "numpy", "safetensors", "llguidance", "tokenizers", "pydantic_settings",
}  # fmt: skip


def run_without(absent: set[str], code: str) -> subprocess.CompletedProcess[str]:
    program = _WITHOUT.format(absent=absent, code=code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60)
