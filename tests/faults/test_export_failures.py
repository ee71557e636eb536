"""A module that cannot be exported: the error says why, names the line of the module, and what to write instead."""

from __future__ import annotations

import gc
import random
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from elman import CharacterVocabulary, ExportError, Labels, NextToken, Source, Token, export_bundle
from elman_export.encoder_export import write_encoder
from elman_export.module_snapshot import left_as_found
from tests.support.encoder_models import LETTERS as ENCODED
from tests.support.encoder_models import Speller, export_translator

LETTERS = CharacterVocabulary("abcd")
Results = tuple[dict[str, Tensor], dict[str, Tensor]]


class Plain(nn.Module):
    """The smallest language model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(4, 6)
        self.head = nn.Linear(6, 4)
        self.prepare()

    def prepare(self) -> None:
        """What a subclass adds."""

    def initial_state(self, rows: int) -> Any:
        return {"hidden": torch.zeros(rows, 6)}

    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        hidden = torch.tanh(self.embedding(inputs["token"]) + state["hidden"])
        return {"logits": self.head(hidden)}, {"hidden": hidden}


def write(module: nn.Module, folder: Path, **changes: Any) -> str:
    options: dict[str, Any] = {"name": "own", "inputs": {"token": Token(LETTERS)}, "outputs": {"logits": NextToken()}}
    return export_bundle(module, folder, **{**options, **changes})


class HidesState(Plain):
    def prepare(self) -> None:
        self.hidden: Tensor | None = None

    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        hidden = torch.zeros_like(state["hidden"]) if self.hidden is None else self.hidden
        self.hidden = torch.tanh(self.embedding(inputs["token"]) + hidden)
        return {"logits": self.head(self.hidden)}, dict(state)


class CountsCalls(Plain):
    calls = 0.0

    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        self.calls += 1.0
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] * self.calls}, after


class CountsInBuffer(Plain):
    def prepare(self) -> None:
        self.register_buffer("calls", torch.zeros(()))

    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        self.calls += 1  # type: ignore[operator]
        outputs, after = super().step(inputs, constants, state)
        return outputs, {"hidden": after["hidden"] * self.calls}


class CollectsInList(Plain):
    def prepare(self) -> None:
        self.seen: list[Tensor] = []

    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        self.seen.append(after["hidden"])
        return {"logits": outputs["logits"] + len(self.seen)}, after


class Draws(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + torch.rand(4)}, after


class DrawsInPython(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + random.random()}, after


class DrawsInNumpy(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + float(np.random.rand())}, after


class AlwaysDrops(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": functional.dropout(outputs["logits"], 0.5)}, after


NUMBERS = iter(range(10**9))


class ReadsElsewhere(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + next(NUMBERS)}, after


class ChangesState(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        state["hidden"] += 1
        return super().step(inputs, constants, state)


class ChangesPartOfState(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        hidden = state["hidden"]
        hidden[:, 1:] = hidden[:, :-1].clone()
        return super().step(inputs, constants, {"hidden": hidden})


class ChangesInput(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        inputs["token"].clamp_(max=1)
        return super().step(inputs, constants, state)


class FixesRows(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + torch.zeros(3, 1)}, after


class NeedsRows(Plain):
    def prepare(self) -> None:
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        return super().step(inputs, constants, {"hidden": self.norm(state["hidden"])})


class ReturnsLogits(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        return super().step(inputs, constants, state)[0]["logits"]


class ReturnsThree(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        return (*super().step(inputs, constants, state), None)


class ReturnsNothing(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        super().step(inputs, constants, state)


class ReturnsTensors(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        outputs, after = super().step(inputs, constants, state)
        return outputs["logits"], after


class StateIsTensor(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        outputs, after = super().step(inputs, constants, state)
        return outputs, after["hidden"]


class StateIsList(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        return super().step(inputs, constants, state)[0], {"hidden": [0.0]}


class StateIsDouble(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        outputs, after = super().step(inputs, constants, state)
        return outputs, {"hidden": after["hidden"].double()}


class OutputIsNumber(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        return {"logits": 1.0}, super().step(inputs, constants, state)[1]


class OneLogitMore(Plain):
    def prepare(self) -> None:
        self.head = nn.Linear(6, 5)


class OneAxisMore(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"][:, None]}, after


class RowsLast(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"].T}, after


class WholeNumbers(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"].long()}, after


class Complains(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        raise ValueError("no such luck")


class WrongKey(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Any:
        return super().step({"token": inputs["tokens"]}, constants, state)


class TwoArguments(Plain):
    def step(self, inputs: Any, state: Any) -> Any:  # type: ignore[override]
        return super().step(inputs, {}, state)


class StartFails(Plain):
    def initial_state(self, rows: int) -> Any:
        raise RuntimeError("not today")


class StartIsTensor(Plain):
    def initial_state(self, rows: int) -> Any:
        return torch.zeros(rows, 6)


class StartIsNumber(Plain):
    def initial_state(self, rows: int) -> Any:
        return {"hidden": 0.0}


class StartIsRandom(Plain):
    def initial_state(self, rows: int) -> Any:
        return {"hidden": torch.randn(1, 6).expand(rows, -1)}


class StartDependsOnRows(Plain):
    def initial_state(self, rows: int) -> Any:
        return {"hidden": torch.full((rows, 6), float(rows))}


class Scripted(Plain):
    def prepare(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.head = torch.jit.script(nn.Linear(6, 4))  # type: ignore[no-untyped-call]


class OnAnotherDevice(Plain):
    def prepare(self) -> None:
        self.to("meta")


# What the error says, and the end of the line that it names.
IN_TORCH: Mapping[type[Plain], tuple[str, str]] = {
    HidesState: (
        r"step\(\): is not repeatable: logits .* because it changes self\.hidden at",
        "self.hidden = torch.tanh",
    ),
    CountsCalls: (r"is not repeatable: .* it changes self\.calls at", "self.calls += 1.0"),
    CountsInBuffer: (r"is not repeatable: the next hidden .* it changes self\.calls at", "self.calls += 1"),
    CollectsInList: (r"is not repeatable: .* it changes self\.seen at", "self.seen.append"),
    Draws: ("is not repeatable: .* it draws random numbers at .* let noise be an input", "torch.rand(4)"),
    DrawsInPython: ("is not repeatable: .* it draws random numbers at", "random.random()"),
    DrawsInNumpy: ("is not repeatable: .* it draws random numbers at", "np.random.rand()"),
    AlwaysDrops: ("it draws random numbers at .* training=self.training", "functional.dropout(outputs"),
    ReadsElsewhere: ("is not repeatable: .* it depends on something else than its arguments", ""),
    ChangesState: (r"changes its argument state\['hidden'\] in place at .* h = h \+ x", 'state["hidden"] += 1'),
    ChangesPartOfState: (r"changes its argument state\['hidden'\] in place at", "hidden[:, 1:] = "),
    ChangesInput: (r"changes its argument inputs\['token'\] in place at", "clamp_(max=1)"),
    FixesRows: ("works with 3 rows, but not with 5: .* The size of tensor a", "torch.zeros(3, 1)"),
    NeedsRows: ("works with 3 rows, but not with 1: .* Expected more than 1 value", "self.norm(state"),
    ReturnsLogits: (r"step\(\): got a Tensor; it must return two values, the outputs by name and the next state", ""),
    ReturnsThree: (r"step\(\): got 3 values; it must return two values", ""),
    ReturnsNothing: (r"step\(\): got None, as without a return; it must return two values", ""),
    ReturnsTensors: (r"step\(\): the outputs: got a Tensor; they must be a mapping", ""),
    StateIsTensor: (r"step\(\): the next state: got a Tensor; it must be a mapping", ""),
    StateIsList: ("the next state: hidden: got a list; it must be a tensor", ""),
    StateIsDouble: ("the next state: hidden: got torch.float64, which cannot be served; it must be one of", ""),
    OutputIsNumber: ("the outputs: logits: got a float; it must be a tensor", ""),
    OneLogitMore: (r"logits: got shape \(3, 5\); it must be \(rows, 4\), a logit for each token", ""),
    OneAxisMore: (r"logits: got shape \(3, 1, 4\); it must be \(rows, 4\)", ""),
    RowsLast: (r"logits: got shape \(4, 3\) for 3 rows; axis 0 must be the row", ""),
    WholeNumbers: ("logits: got torch.int64; logits are floating-point numbers", ""),
    Complains: (r"step\(\) with token .* failed: ValueError: no such luck", 'raise ValueError("no such luck")'),
    WrongKey: ("failed: KeyError: 'tokens'", 'inputs["tokens"]'),
    TwoArguments: (r"step\(\) with .* failed: TypeError: .*takes 3 positional arguments but 4 were given", ""),
    StartFails: (r"initial_state\(1\) failed: RuntimeError: not today", "raise RuntimeError"),
    StartIsTensor: (r"initial_state\(1\): got a Tensor; it must be a mapping", ""),
    StartIsNumber: (r"initial_state\(1\): hidden: got a float; it must be a tensor", ""),
    StartIsRandom: (r"initial_state\(1\): hidden is different at every call", ""),
    StartDependsOnRows: (r"initial_state\(3\): the rows of hidden differ", ""),
    Scripted: (r"self\.head: got a torch\.jit\.ScriptModule, .* Give the module that it was made from", ""),
    OnAnotherDevice: (r"got tensors on meta; modules are exported from the CPU\. Call \.cpu\(\) first", ""),
}


@pytest.mark.parametrize("kind", IN_TORCH, ids=lambda kind: kind.__name__)
def test_what_is_seen_in_torch_is_said_before_anything_is_exported(kind: type[Plain], tmp_path: Path) -> None:
    check_refusal(write, kind(), IN_TORCH[kind], tmp_path)


def test_a_collection_in_the_middle_of_a_line_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    def collected(phase: str, info: object) -> None:
        assert phase in ("start", "stop"), info

    gc.callbacks.append(collected)
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        check_refusal(write, CountsCalls(), IN_TORCH[CountsCalls], tmp_path)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)


def check_refusal(
    export: Callable[[nn.Module, Path], object], module: nn.Module, expected: tuple[str, str], folder: Path
) -> None:
    """Check that an export is refused, and what it says of the problem and the line."""
    problem, line = expected
    with pytest.raises(ExportError, match=problem) as caught:
        export(module, folder / "own")
    check_text(str(caught.value), line, folder)


def check_text(error: str, line: str, folder: Path) -> None:
    assert not re.search(r"\x1b|\n", error)
    assert str(folder) not in error
    assert "Next steps" not in error
    if line:
        named = re.search(rf"{re.escape(__file__)}:(\d+): (.*)", error)
        assert named is not None
        assert line in Path(__file__).read_text().splitlines()[int(named[1]) - 1]
    assert list(folder.iterdir()) == []


class Decides(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": -outputs["logits"] if after["hidden"].sum() > 0 else outputs["logits"]}, after


class Inexpressible(Plain):
    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        outputs, after = super().step(inputs, constants, state)
        return {"logits": outputs["logits"] + torch.special.i0e(outputs["logits"])}, after


class Projects(Plain):
    def prepare(self) -> None:
        self.lstm = nn.LSTM(6, 6, proj_size=3)
        self.head = nn.Linear(3, 4)

    def initial_state(self, rows: int) -> Any:
        return {"hidden": torch.zeros(rows, 3), "cell": torch.zeros(rows, 6)}

    def step(self, inputs: Any, constants: Any, state: Any) -> Results:
        read = self.embedding(inputs["token"])[None]
        outputs, (hidden, cell) = self.lstm(read, (state["hidden"][None], state["cell"][None]))
        return {"logits": self.head(outputs[0])}, {"hidden": hidden[0], "cell": cell[0]}


WHILE_TRACED: Mapping[type[Plain], tuple[str, str]] = {
    Decides: (r"decides in Python by the value of a tensor at .* torch\.where", '["hidden"].sum() > 0'),
    Inexpressible: (r"torch cannot express the operator prims\.bessel_i0e in ONNX at", "torch.special.i0e("),
    Projects: (r"onnxruntime cannot run .*\. self\.lstm has proj_size=3, .* use nn\.LSTMCell and nn\.Linear", ""),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("kind", WHILE_TRACED, ids=lambda kind: kind.__name__)
def test_what_torch_cannot_export_is_said_with_its_line(
    kind: type[Plain], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    problem, line = WHILE_TRACED[kind]
    with pytest.raises(ExportError, match=problem) as caught:
        write(kind(), tmp_path / "own")
    check_text(str(caught.value), line, tmp_path)
    assert capfd.readouterr() == ("", "")  # No dump of a graph, no coloured text of onnxruntime.


class LoopsOverTime(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        constants, states = super().encode(source, lengths)
        memory = [constants["memory"][:, place] for place in range(source.shape[1])]
        return {**constants, "memory": torch.stack(memory, dim=1)}, states


class DrawsInEncoder(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        constants, states = super().encode(source, lengths)
        return constants, {"hidden": states["hidden"] + torch.rand(1)}


class ChangesSource(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        source[source == 0] = 1
        return super().encode(source, lengths)


class ReturnsConstants(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        return super().encode(source, lengths)[0]


class NarrowKeys(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        constants, states = super().encode(source, lengths)
        return {**constants, "keys": constants["keys"][..., :20]}, states


class NarrowState(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        constants, states = super().encode(source, lengths)
        return constants, {"hidden": states["hidden"][:, :5]}


class BooleanMask(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        constants, states = super().encode(source, lengths)
        return {**constants, "mask": constants["mask"] > 0}, states


OF_ENCODERS: Mapping[type[Speller], tuple[str, str]] = {
    DrawsInEncoder: (r"encode\(\): is not repeatable: state\.hidden .* it draws random numbers at", "torch.rand(1)"),
    ChangesSource: (r"encode\(\): changes its argument source in place at", "source[source == 0] = 1"),
    ReturnsConstants: (r"encode\(\): got a dict; it must return two values, the constants by name", ""),
    NarrowKeys: (r"constant\.keys is torch\.float32 \(3, 12, 20\) .* must be torch\.float32 \(3, 12, 24\)", ""),
    NarrowState: (r"state\.hidden is torch\.float32 \(3, 5\) .* must be torch\.float32 \(3, 24\)", ""),
    BooleanMask: (r"encode\(\): the constants: mask: got torch\.bool, which cannot be served", ""),
}


@pytest.mark.parametrize("kind", OF_ENCODERS, ids=lambda kind: kind.__name__)
def test_encoders_are_told_as_well(kind: type[Speller], tmp_path: Path) -> None:
    check_refusal(export_translator, kind(), OF_ENCODERS[kind], tmp_path)


def test_a_loop_over_time_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"encode\(\): the number of positions is fixed to 2 at .* Python loop"
    ) as found:
        write_encoder(LoopsOverTime(), Source(Token(ENCODED), 64), tmp_path / "encoder.onnx")
    check_text(str(found.value), "for place in range", tmp_path)


def content(module: nn.Module) -> list[object]:
    """Everything in a module that an export might change."""
    found: list[object] = []
    for submodule in module.modules():
        found += [submodule.training, list(vars(submodule)), list(submodule._forward_hooks)]
        found += [value for value in vars(submodule).values() if isinstance(value, int | float | None)]
    for tensor in (*module.parameters(), *module.buffers()):
        found += [id(tensor), tensor.tolist(), tensor.requires_grad, tensor.grad]
    return [*found, torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


@pytest.mark.parametrize("kind", [HidesState, CountsCalls, CountsInBuffer, CollectsInList, Draws, DrawsInPython,
                                  DrawsInNumpy, ChangesState, Decides], ids=lambda kind: kind.__name__)  # fmt: skip
def test_a_module_is_left_as_it_was_found(kind: type[Plain], tmp_path: Path) -> None:
    module = kind().train()
    module.head.eval()  # A part that is frozen on purpose.
    module.head.requires_grad_(False)
    module.embedding.weight.grad = torch.ones(4, 6)
    module.register_forward_hook(lambda *_: None)
    before = content(module)
    with pytest.raises(ExportError):
        write(module, tmp_path / "own")
    assert content(module) == before
    if isinstance(module, CollectsInList):
        assert module.seen == []


def test_everything_is_restored_that_a_call_may_change() -> None:
    module = Plain().train()
    module.table = {"a": [1, 2], "b": OrderedDict(c={3})}  # type: ignore[assignment]
    module.register_buffer("count", torch.zeros(2))
    before, weight, gradient = content(module), module.head.weight, torch.ones(4, 6)
    weight.grad = gradient
    with left_as_found(module):
        module.table["a"].append(3)  # type: ignore[union-attr, operator]
        module.table["b"]["c"].add(4)  # type: ignore[index]
        module.table["d"] = 1  # type: ignore[index, operator]
        module.count.numpy()[0] = 7  # type: ignore[operator]
        module.head = nn.Linear(6, 9)
        weight.data.zero_()
        weight.grad = None
        module.other = torch.zeros(3)
        module.register_forward_pre_hook(lambda *_: None)
        random.random()
    assert module.table == {"a": [1, 2], "b": {"c": {3}}}  # type: ignore[comparison-overlap]
    assert module.head.weight is weight
    assert weight.grad is gradient
    assert not module._forward_pre_hooks
    weight.grad = None
    assert content(module) == before


def test_a_step_may_replace_what_is_in_the_mapping_of_states(tmp_path: Path) -> None:
    class Replaces(Plain):
        def step(self, inputs: Any, constants: Any, state: Any) -> Results:
            outputs, after = super().step(inputs, constants, state)
            state["hidden"] = after["hidden"]
            return {**outputs, "shown": None}, state  # type: ignore[dict-item]

    assert write(Replaces(), tmp_path / "own", outputs={"logits": Labels(["w", "x", "y", "z"])})
