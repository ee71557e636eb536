"""Errors are of the documented type, name the argument that is wrong, and no folder that is gone when they are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from elman import (
    CharacterVocabulary,
    Client,
    ExportError,
    InvalidRequestError,
    Labels,
    NextToken,
    Source,
    Token,
    Values,
    export_bundle,
)
from elman_export import bundle_export, export_run
from elman_protos import v1
from elman_training import TextConfig, TrainingError, train

LETTERS = CharacterVocabulary("abcd")
HALF = "\ud800"
NO_CHARACTER = r"'.*\\ud800.*',? (which )?has half of a surrogate pair"


class Plain(nn.Module):
    """The smallest language model, with a second output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(4, 6), nn.Linear(6, 4)

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"hidden": torch.zeros(rows, 6)}

    def step(self, inputs: Any, constants: Any, state: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        hidden = torch.tanh(self.embedding(inputs["token"]) + state["hidden"])
        logits = self.head(hidden)
        return {"logits": logits, "more": logits * 2, "next.hidden": logits, HALF: logits}, {"hidden": hidden}


def write(folder: Path, **changes: Any) -> str:
    options: dict[str, Any] = {"name": "own", "inputs": {"token": Token(LETTERS)}, "outputs": {"logits": NextToken()}}
    return export_bundle(Plain(), folder, **{**options, **changes})


def tokens(**options: Any) -> dict[str, Token]:
    return {"token": Token(LETTERS, **options)}


def labels(*names: Any, **options: Any) -> dict[str, Labels]:
    return {"logits": Labels(list(names), **options)}


@pytest.mark.parametrize(
    ("changes", "error_message"),
    [
        ({"name": "my model"}, r"name: got 'my model'; it must be 1 to 64 letters"),
        ({"name": None}, r"name: got None; it must be"),
        ({"description": HALF}, rf"description: got {NO_CHARACTER}"),
        ({"description": 3}, "description: got a int; it must be a text"),
        ({"provenance": {"corpus": f"a{HALF}"}}, rf"provenance\['corpus'\]: got {NO_CHARACTER}"),
        ({"provenance": {"step": 3}}, r"provenance\['step'\]: got a int; it must be a text"),
        ({"metrics": {"loss": "low"}}, r"metrics\['loss'\]: got 'low'; it must be a finite number"),
        ({"metrics": {"loss": float("nan")}}, r"metrics\['loss'\]: got nan; it must be a finite number"),
        ({"metrics": {HALF: 1.0}}, rf"metrics: the key: got {NO_CHARACTER}"),
        ({"inputs": {}}, "inputs: got none; a step without a source reads at least one input"),
        ({"inputs": {"token": LETTERS}}, r"inputs\['token'\]: got a CharacterVocabulary; it must be Token or Values"),
        ({"inputs": {"token": Token}}, r"inputs\['token'\]: got the class Token; it must be Token or Values"),
        ({"inputs": [Token(LETTERS)]}, "inputs: got a list; it must be a mapping from names to Token or Values"),
        ({"inputs": {"": Token(LETTERS)}}, "inputs: got an empty name"),
        ({"inputs": {HALF: Token(LETTERS)}}, rf"inputs: the name: got {NO_CHARACTER}"),
        ({"inputs": {"token": Token("abcd")}}, r"inputs\['token'\]: vocabulary: got a str; it must be one of"),
        ({"inputs": tokens(begin_id=4)}, "begin_id: got 4; the ids of the vocabulary are 0 to 3"),
        ({"inputs": tokens(end_id=-1)}, "end_id: got -1; the ids of the vocabulary are 0 to 3"),
        ({"inputs": {**tokens(), "other": Token(LETTERS)}}, "inputs: got the tokens token, other; a step reads one"),
        ({"inputs": {"token": Values((0,))}}, r"inputs\['token'\]: shape: got \(0,\); all sizes must be at least 1"),
        ({"inputs": {"token": Values((4,))}}, r"outputs\['logits'\]: got NextToken without an input that is a Token"),
        ({"inputs": {**tokens(), "state.hidden": Values()}}, "would both be 'state.hidden' in the graph"),
        ({"outputs": {}}, "outputs: got none; a step has at least one output"),
        ({"outputs": {"logits": NextToken}}, r"outputs\['logits'\]: got the class NextToken; it must be NextToken or"),
        ({"outputs": {"logits": NextToken(), "more": NextToken()}}, "outputs: got logits, more as NextToken; only one"),
        ({"outputs": {"logits": Labels("abcd"), "more": Labels("abcd")}}, "outputs: got logits, more as Labels; only"),
        ({"outputs": {"next.hidden": NextToken()}}, "would both be 'next.hidden' in the graph"),
        ({"outputs": {HALF: NextToken()}}, rf"outputs: the name: got {NO_CHARACTER}"),
        ({"outputs": labels("a", "b", "c", "a")}, r"outputs\['logits'\]: names: the label 'a' is listed twice"),
        ({"outputs": labels("a", "b", "c", HALF)}, rf"outputs\['logits'\]: names: the label {NO_CHARACTER}"),
        ({"outputs": labels("a", "b", "c", 4)}, r"names: got \['a', 'b', 'c', 4\]; they must be a list of texts"),
        ({"outputs": labels("only")}, r"outputs\['logits'\]: got one label; its probability would always be 1"),
        ({"outputs": labels("a", "b", "c", scope="sequence")}, r"got shape \(3, 4\); it must be \(rows, 3\), a logit"),
        ({"outputs": labels("a", "b", "c", "d", scope="token")}, "scope: got 'token'; it must be one of sequence"),
        ({"constants": {"image": Values((2,), True)}}, r"constants\['image'\]: got variable_length=True"),
        ({"constants": {"image": Token(LETTERS)}}, r"constants\['image'\]: got a Token; it must be Values"),
        ({"source": Token(LETTERS)}, "source: got a Token; it must be a Source"),
        ({"source": Source(LETTERS, 9)}, "source: kind: got a CharacterVocabulary; it must be Token or Values"),
        ({"source": Source(Token(LETTERS), 0)}, "source: longest: got 0; it must be at least 1"),
        ({"tree": 2}, "tree: got a int; it must be a Tree"),
    ],
)  # fmt: skip
def test_arguments_of_an_export_are_refused_by_name(
    changes: dict[str, Any], error_message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=error_message) as caught:
        write(tmp_path / "own", **changes)
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_bundle_refuses_is_an_error_of_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever no check of the arguments has foreseen."""
    monkeypatch.setattr(bundle_export, "_write_graphs", lambda *_: v1.ModelSpec(step=v1.StepSpec(file="step.onnx")))
    with pytest.raises(ExportError) as caught:
        write(tmp_path / "own")
    assert str(caught.value) == f"{tmp_path / 'own'}: the file step.onnx that the manifest names is missing"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        write(tmp_path / "own")
    assert caught.value.filename == str(tmp_path / "own")


def test_a_file_that_cannot_be_written_is_named_by_its_final_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        (arguments[-1] / "missing" / "step.onnx").write_bytes(b"")

    monkeypatch.setattr(bundle_export, "_write_graphs", full)
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "own")
    assert caught.value.filename == str(tmp_path / "own")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "names.tsv").write_text("".join(f"{letter * 4}\t{letter}\n" for letter in "ab" * 8))
    config = TextConfig(task="classify", corpus=str(folder / "names.tsv"), steps=1, layers=1, embedding=2, hidden=2)
    train(config, folder / "run", console=Console(quiet=True))
    return folder / "run"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9])


def widen(path: Path) -> None:
    path.write_text(path.read_text().replace('"hidden": 2', '"hidden": 3'))


@pytest.mark.parametrize(
    ("file", "damage", "error_message"),
    [
        ("config.json", cut, r"config\.json: "),
        ("config.json", widen, r"best\.safetensors: does not fit the other files of the run: .*size mismatch"),
        ("vocabulary.json", cut, r"vocabulary\.json: expected a JSON object"),
        ("vocabulary.json", Path.unlink, r"vocabulary\.json: expected a JSON object .* No such file"),
        ("labels.json", cut, r"labels\.json: expected a JSON object"),
        ("labels.json", Path.unlink, r"best\.safetensors: does not fit the other files of the run"),
        ("result.json", cut, r"result\.json: expected a JSON object with the measurements"),
        ("best.safetensors", cut, r"best\.safetensors: cannot be read as a checkpoint"),
    ],
)
def test_a_damaged_run_is_an_error_of_training(
    run: Path, file: str, damage: Callable[[Path], object], error_message: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    damage(copy / file)
    with pytest.raises(TrainingError, match=error_message) as caught:
        export_run(copy, tmp_path / "bundle", name="own")
    assert "\n" not in str(caught.value)


async def test_arguments_of_the_client_are_refused_by_name() -> None:
    wrong: list[tuple[str, Callable[[Client], Awaitable[object]]]] = [
        ("a Tensor of torch.float32; convert it to a numpy array", lambda client: client.classify(torch.zeros(2, 3))),
        ("a int; an input is text, token ids", lambda client: client.classify(5)),  # type: ignore[arg-type]
        ("a generator; an input is", lambda client: client.classify(one for one in "a")),  # type: ignore[arg-type]
        ("cannot be expressed", lambda client: client.classify({"a": 1.0})),  # type: ignore[arg-type]
        ("'list' object has no", lambda client: client.generate("a", logit_bias=[1]).text()),  # type: ignore[arg-type]
        ("'bool' object has no", lambda client: client.search("a", width=2, early_stopping=True)),  # type: ignore[arg-type]
        ("cannot be expressed", lambda client: client.generate("a", json_schema={"a": object()}).text()),
    ]
    async with Client("127.0.0.1:1") as client:
        for error_message, call in wrong:
            with pytest.raises(InvalidRequestError, match=f"the request cannot be expressed: .*{error_message}|"
                               f"^the request {error_message}"):  # fmt: skip
                await call(client)
