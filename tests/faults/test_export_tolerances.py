"""The export compares with torch as exactly as the types of a module allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elman_bundle import load_bundle
from elman_export import ExportError, Labels, Token, export_bundle
from elman_export.contract import Tensors
from elman_export.parity import compare
from tests.support.bundles import CHARACTERS


class Half(nn.Module):
    """A recurrent step that computes in float16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(CHARACTERS.size, 16)
        self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.hidden.weight.mul_(3)
        self.half()

    def initial_state(self, rows: int) -> Tensors:
        return {"hidden": torch.zeros(rows, 16, dtype=torch.float16)}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        hidden: Tensor = torch.tanh(self.embedding(inputs["token"]) + self.hidden(state["hidden"]))
        return {"scores": self.head(hidden).float()}, {"hidden": hidden}


def test_a_module_in_float16_is_exported(tmp_path: Path) -> None:
    export_bundle(
        Half(), tmp_path / "half", name="half", inputs={"token": Token(CHARACTERS)}, outputs={"scores": Labels("abc")}
    )
    spec = load_bundle(tmp_path / "half").spec
    assert 2e-4 < spec.metrics["parity_largest_difference"] < 2e-2


@pytest.mark.parametrize(
    ("module", "difference", "allowed"),
    [
        (nn.Linear(2, 2), 1e-4, True),
        (nn.Linear(2, 2), 1e-3, False),
        (nn.Linear(2, 2).half(), 1e-3, True),
        (nn.Linear(2, 2).half(), 0.1, False),
        (nn.Linear(2, 2).bfloat16(), 0.05, True),
        (nn.Linear(2, 2).bfloat16(), 0.5, False),
    ],
)
def test_tolerances(module: nn.Module, difference: float, allowed: bool) -> None:
    found = {"y": np.array([[0.5 + difference]], np.float32)}
    expected: dict[str, Any] = {"y": np.array([[0.5]], np.float32)}
    if allowed:
        assert compare(module, expected, found, "with 1 row") == pytest.approx(difference, rel=1e-3)
    else:
        with pytest.raises(ExportError, match="y: torch and onnxruntime differ by"):
            compare(module, expected, found, "with 1 row")


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (-np.inf, -np.inf, True),
        (np.inf, -np.inf, False),
        (-np.inf, -1e30, False),
        (1.0, np.inf, False),
        (np.nan, np.nan, False),
    ],
)
def test_infinities_are_equal_to_themselves(expected: float, found: float, same: bool) -> None:
    arrays = [{"y": np.array([[value, 0.0]], np.float32)} for value in (expected, found)]
    if same:
        assert compare(nn.Identity(), *arrays, "with 1 row") == 0
    else:
        with pytest.raises(ExportError, match="differ by"):
            compare(nn.Identity(), *arrays, "with 1 row")
