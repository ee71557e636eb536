"""Export: torch equals onnxruntime, and a module for which it does not is not exported."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional

from elman import ExportError, Labels, NextToken, Token, Values, export_bundle
from elman_bundle import CharacterVocabulary, load_bundle
from elman_export.contract import StepInterface
from elman_export.examples import make_example
from elman_export.network_steps import NetworkStep
from elman_export.step_export import write_step
from elman_training.cells import CELLS
from tests.support.bundles import CHARACTERS, make_network
from tests.support.reference import open_graph

LETTERS = CharacterVocabulary("abcd")


class LeakyUnit(nn.Module):
    """A custom cell with two states of different kinds, one of which does not start at zero."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(LETTERS.size, hidden)
        self.leak = nn.Parameter(torch.rand(hidden))
        self.start = nn.Parameter(torch.randn(hidden))
        self.head = nn.Linear(hidden, LETTERS.size)

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"level": self.start.expand(rows, -1), "count": torch.ones(rows, 1)}

    def step(
        self, inputs: dict[str, Tensor], constants: dict[str, Tensor], state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        level = self.leak * state["level"] + torch.tanh(self.embedding(inputs["token"]))
        return {"logits": self.head(level / state["count"])}, {"level": level, "count": state["count"] + 1}


def write(module: nn.Module, folder: Path, **changes: Any) -> str:
    options: dict[str, Any] = {
        "name": "own", "inputs": {"token": Token(LETTERS)}, "outputs": {"logits": NextToken()}, **changes,
    }  # fmt: skip
    return export_bundle(module, folder, **options)


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_torch_equals_onnxruntime_over_a_long_run(bundles: Any, cell: str, rows: int) -> None:
    module = NetworkStep(make_network(cell, CHARACTERS.size))
    module.eval()
    session = open_graph(bundles[cell].graph_path)
    random = np.random.default_rng(rows)
    state = {name: torch.from_numpy(random.normal(size=value.shape).astype(np.float32) * 0.5)
             for name, value in module.initial_state(rows).items()}  # fmt: skip
    fed = {f"state.{name}": value.numpy() for name, value in state.items()}
    names = ["logits", *[f"next.{name}" for name in state]]
    for _ in range(50):
        tokens = random.integers(0, CHARACTERS.size, rows)
        with torch.no_grad():
            outputs, state = module.step({"token": torch.from_numpy(tokens)}, {}, state)
        result = session.run(names, {"token": tokens, **fed})
        np.testing.assert_allclose(result[0], outputs["logits"].numpy(), atol=2e-5, rtol=1e-4)
        fed = {f"state.{name}": value for name, value in zip(state, result[1:], strict=True)}
    for name, value in state.items():
        np.testing.assert_allclose(fed[f"state.{name}"], value.numpy(), atol=2e-5, rtol=1e-4)


def test_folded_step_equals_the_step() -> None:
    network = make_network("lstm", 7).eval()
    folded = NetworkStep(network)
    tokens = torch.tensor([1, 2, 3])
    state = network.initial_state(3)
    with torch.no_grad():
        plain, _ = network.step(tokens, state)
        outputs, _ = folded.step({"token": tokens}, {}, state)
    torch.testing.assert_close(outputs["logits"], plain, atol=1e-6, rtol=1e-5)


_OPERATORS = {
    "elman": {"Gather": 1, "Gemm": 4, "Add": 1, "Concat": 2, "Tanh": 3},
    "lstm": {"Gather": 1, "Gemm": 4, "Add": 4, "Concat": 2, "Split": 3, "Sigmoid": 9, "Tanh": 6, "Mul": 9},
    "gru": {"Gather": 1, "Gemm": 6, "Add": 12, "Split": 6, "Sigmoid": 6, "Tanh": 3, "Mul": 6, "Sub": 3},
}


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_graph_contains_no_redundant_nodes(cell: str, tmp_path: Path) -> None:
    """One product per layer where the cell allows it, with weights concatenated at export."""
    module = NetworkStep(make_network(cell, CHARACTERS.size, layers=3, hidden=400)).eval()
    write_step(
        module, make_example(module, StepInterface({"token": Token(CHARACTERS)}), 3, 0), ("logits",), tmp_path / "step"
    )
    graph = onnx.load(tmp_path / "step").graph
    assert Counter(node.op_type for node in graph.node) == _OPERATORS[cell]
    constants = {weight.name for weight in graph.initializer}
    assert all(node.input[1] in constants for node in graph.node if node.op_type == "Gemm")
    assert len(constants) == len({name for node in graph.node for name in node.input} & constants)


class Weighing(LeakyUnit):
    """Computes weights from weights, as weight normalization does."""

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        weight = torch.cat([self.head.weight, self.head.weight / self.head.weight.norm()]) @ torch.eye(6)
        _, after = super().step(inputs, constants, state)
        return {"logits": functional.linear(after["level"], weight)[:, :4]}, after


def test_expressions_of_weights_are_folded(tmp_path: Path) -> None:
    write(Weighing(), tmp_path / "own")
    operators = {node.op_type for node in onnx.load(tmp_path / "own" / "step.onnx").graph.node}
    assert not operators & {"Concat", "Div", "ReduceL2", "Sqrt", "Transpose"}


def test_custom_cell_is_exported(tmp_path: Path) -> None:
    module = LeakyUnit()
    digest = write(module, tmp_path / "own")
    bundle = load_bundle(tmp_path / "own")
    assert bundle.digest == digest
    states = {state.input_name: state for state in bundle.spec.step.states}
    assert states["state.count"].fill == 1.0
    assert states["state.level"].file == "initial_state.safetensors"
    start = load_file(tmp_path / "own" / "initial_state.safetensors")["state.level"]
    np.testing.assert_array_equal(start, module.start.detach().numpy())
    session = open_graph(bundle.graph_path)
    state = module.initial_state(1)
    fed = {"state.level": start[None], "state.count": np.ones((1, 1), np.float32)}
    for token in (0, 3, 2):
        with torch.no_grad():
            outputs, state = module.step({"token": torch.tensor([token])}, {}, state)
        logits, *after = session.run(
            ["logits", *(f"next.{name}" for name in state)], {"token": np.array([token]), **fed}
        )
        fed = {f"state.{name}": value for name, value in zip(state, after, strict=True)}
        np.testing.assert_allclose(logits, outputs["logits"].numpy(), atol=1e-6)
    np.testing.assert_allclose(fed["state.count"], [[4.0]])


def test_export_restores_the_training_mode(tmp_path: Path) -> None:
    module = LeakyUnit().train()
    write(module, tmp_path / "own")
    assert module.training


class CrossTalk(LeakyUnit):
    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] - outputs["logits"].mean(dim=0)}, after


class RenamedState(LeakyUnit):
    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return outputs, {"other": after["level"], "count": after["count"]}


class GrowingState(LeakyUnit):
    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return outputs, {**after, "count": torch.cat([after["count"], after["count"]], dim=1)}


class FixedRows(LeakyUnit):
    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + torch.zeros(len(inputs["token"].tolist()), 1)}, after


class Forgetful(LeakyUnit):
    """Uses a plain number that changes between calls; the graph keeps the value of the trace."""

    calls = 0.0

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        self.calls += 1.0
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] * self.calls}, after


class UnequalStart(LeakyUnit):
    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"level": torch.arange(rows * 6.0).reshape(rows, 6), "count": torch.ones(rows, 1)}


class ColumnFirst(LeakyUnit):
    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"level": torch.zeros(6, rows), "count": torch.ones(rows, 1)}


@pytest.mark.parametrize(
    ("module", "error_message"),
    [
        (CrossTalk(), "a row's value in a batch of|differ by"),
        (RenamedState(), r"returns the states \['count', 'other'\], but initial_state\(\) has \['count', 'level'\]"),
        (
            GrowingState(),
            r"returns the state count as torch.float32 \(3, 2\), but its input has torch.float32 \(3, 1\)",
        ),
        (FixedRows(), "the number of rows is fixed to 3 at .*torch.zeros"),
        (Forgetful(), "is not repeatable"),
        (UnequalStart(), "the rows of level differ"),
        (ColumnFirst(), r"level: got shape \(6, 1\) for 1 row; axis 0 must be the row"),
        (nn.Linear(2, 2), r"Linear needs the methods initial_state\(rows\) and step"),
    ],
)
def test_module_that_breaks_the_contract_is_not_exported(module: nn.Module, error_message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=error_message):
        write(module, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def test_missing_output_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"returns the outputs \['logits'\]; 'scores' is not among them"):
        write(LeakyUnit(), tmp_path / "own", outputs={"scores": Labels(["a", "b", "c", "d"])})


def test_existing_folder_is_kept_unless_overwrite_is_set(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    write(LeakyUnit(), folder)
    with pytest.raises(ExportError, match="exists already"):
        write(LeakyUnit(), folder)
    before = load_bundle(folder).digest
    assert write(LeakyUnit(hidden=5), folder, overwrite=True) != before
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="it is not a bundle, so it stays"):
        write(LeakyUnit(), tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


class Conditioned(nn.Module):
    """Reads numbers, holds a constant, scores labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inner = nn.Linear(3 + 2 + 4, 4)
        self.head = nn.Linear(4, 3)

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"hidden": torch.zeros(rows, 4)}

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        joined = torch.cat([inputs["frame"], constants["image"], state["hidden"]], dim=1)
        hidden = torch.tanh(self.inner(joined))
        return {"scores": self.head(hidden)}, {"hidden": hidden}


def test_frames_and_constants_are_exported(tmp_path: Path) -> None:
    module = Conditioned()
    export_bundle(
        module,
        tmp_path / "own",
        name="own",
        inputs={"frame": Values([3])},
        constants={"image": Values([2])},
        outputs={"scores": Labels(["x", "y", "z"], "step")},
    )
    random = np.random.default_rng(0)
    images = random.normal(size=(3, 2)).astype(np.float32)
    frames = random.normal(size=(3, 3)).astype(np.float32)
    graph = load_bundle(tmp_path / "own").graph_path
    session = open_graph(graph)
    hidden = np.zeros((3, 4), np.float32)
    result = session.run(["scores"], {"frame": frames, "constant.image": images, "state.hidden": hidden})[0]
    with torch.no_grad():
        expected, _ = module.step(
            {"frame": torch.from_numpy(frames)}, {"image": torch.from_numpy(images)}, module.initial_state(3)
        )
    np.testing.assert_allclose(result, expected["scores"].numpy(), atol=1e-6)
