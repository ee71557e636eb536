"""Bundles with an encoder: what export and loading refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from elman_bundle import MANIFEST, Bundle, BundleError, SymbolVocabulary, load_bundle, write_tokens
from elman_bundle.bundle_errors import EncodingError
from elman_export import ExportError
from elman_export.contract import Tensors
from elman_protos import v1
from elman_server.engine import OnnxEngine, Opener, ProviderChoice
from elman_server.engine.encoder import Encoder
from elman_server.errors import EngineError, ModelLoadError
from elman_server.event_loop import ServerEventLoop
from elman_server.loading import serve_bundle
from elman_server.settings import Settings
from tests.support.encoder_models import LETTERS, Speller, export_translator, judge_bundle, translator_bundle
from tests.support.manifests import change, reseal

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def translator() -> Bundle:
    return translator_bundle()


@pytest.fixture
def copy(translator: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(translator.path, tmp_path / "translator"))


_INCONSISTENT: dict[str, tuple[Change, str]] = {
    "no file": (lambda m: m["encoder"].pop("file"), "encoder.file is missing"),
    "no input name": (lambda m: m["encoder"]["input"].pop("name"), "encoder.input.name is missing"),
    "no lengths": (lambda m: m["encoder"].pop("length_name"), "encoder.length_name is missing"),
    "no longest": (lambda m: m["encoder"].pop("longest_source"), "encoder.longest_source must be at least 1"),
    "row axis": (lambda m: m["encoder"]["input"].update(row_axis=1), "encoder.input.row_axis is 1"),
    "vocabulary": (
        lambda m: m["encoder"]["input"]["token"].update(vocabulary="nope"),
        r"encoder.input.token.vocabulary 'nope' is not one of \['source', 'text'\]",
    ),
    "other positions": (
        lambda m: m["step"]["constants"][0].update(shape=[7, 48]),
        r"step.constants\[constant.memory\].shape must begin with the encoder's longest_source, 64",
    ),
    "not encoded": (
        lambda m: m["step"]["states"][0].update(encoded=False),
        r"step.states\[state.hidden\].encoded must be true where it is set",
    ),
    "no encoder": (lambda m: m.pop("encoder"), r"step.states\[state.hidden\].encoded is set, but there is no encoder"),
    "nothing given": (
        lambda m: (m["step"].pop("constants"), m["step"]["states"][0].pop("encoded")),
        "encoder returns nothing",
    ),
}


@pytest.mark.parametrize("name", _INCONSISTENT)
def test_an_inconsistent_manifest_is_refused(copy: Path, name: str) -> None:
    edit, error_message = _INCONSISTENT[name]
    change(copy, edit)
    with pytest.raises(BundleError, match=error_message):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("edit", "error_message"),
    [
        (lambda m: m["encoder"]["input"].update(name="words"), r"encoder\.onnx: the manifest names the input 'words'"),
        (lambda m: m["encoder"].update(length_name="sizes"), r"encoder\.onnx: the manifest names the input 'sizes'"),
        (
            lambda m: m["step"]["constants"].append(
                {"name": "constant.more", "data_type": "DATA_TYPE_FLOAT32", "shape": [3]}
            ),
            r"encoder\.onnx: the manifest names the output 'constant\.more'",
        ),
        (
            lambda m: m["step"]["constants"][0].update(variable_length=False),
            r"step\.onnx: input 'constant\.memory' has shape",
        ),
    ],
)
def test_graphs_that_contradict_the_manifest_are_refused(copy: Path, edit: Change, error_message: str) -> None:
    change(copy, edit)
    if "memory" in error_message:  # A dynamic axis matches any size; a fixed one does not.
        close_positions(copy / "step.onnx")
        change(copy, lambda m: m["step"]["constants"][0].update(variable_length=True))
    with pytest.raises(ModelLoadError, match=error_message):
        OnnxEngine(reseal(copy), capacity=2, opener=Opener(ProviderChoice.CPU, 1), run_seconds=0.001)


def test_labels_of_a_generating_encoder_model_are_refused(copy: Path) -> None:
    """Classification requests have no source."""
    shown = {"name": "next.hidden", "data_type": "DATA_TYPE_FLOAT32"}

    def label(manifest: dict[str, Any]) -> None:
        labels = {"name": "labels", "kind": "VOCABULARY_KIND_LABELS", "file": "l.json", "size": 24}
        manifest["vocabularies"].append(labels)
        meaning = {"vocabulary": "labels", "scope": "LABEL_SCOPE_SEQUENCE"}
        manifest["step"]["outputs"].append({**shown, "name": "shown", "shape": [24], "label_logits": meaning})

    change(copy, label)
    write_tokens(copy / "l.json", [f"l{index}" for index in range(24)])
    with (
        closing(ServerEventLoop()) as loop,
        pytest.raises(ModelLoadError, match="is served if it generates tokens and has no labels"),
    ):
        serve_bundle(reseal(copy), Settings(), loop)


def test_encoder_with_other_shapes_is_refused_by_name(copy: Path) -> None:
    change(copy, lambda m: m["step"]["constants"].reverse())
    model = onnx.load(copy / "encoder.onnx")
    swapped = {"constant.keys": "constant.memory", "constant.memory": "constant.keys"}
    for output in model.graph.output:
        output.name = swapped.get(output.name, output.name)
    for node in model.graph.node:
        node.output[:] = [swapped.get(name, name) for name in node.output]
        node.input[:] = [swapped.get(name, name) for name in node.input]
    onnx.save(model, copy / "encoder.onnx")
    with pytest.raises(ModelLoadError, match=r"encoder\.onnx: output 'constant\.\w+' has shape"):
        OnnxEngine(reseal(copy), capacity=2, opener=Opener(ProviderChoice.CPU, 1), run_seconds=0.001)


def test_shape_mismatch_at_run_time_names_the_output(translator: Bundle) -> None:
    """A graph need not declare the shapes of its outputs."""
    encoder = Encoder(translator, Opener(ProviderChoice.CPU, 1))
    encoder._shapes["constant.keys"] = (64, 25)
    with pytest.raises(
        EngineError, match=r"returned constant\.keys of shape \(1, 3, 24\); the manifest says \(1, 3, 25\)"
    ):
        encoder.encode([LETTERS.encode("abc")])


def close_positions(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    memory = next(value for value in model.graph.input if value.name == "constant.memory")
    memory.type.tensor_type.shape.dim[1].dim_value = 64
    onnx.save(model, path)


def test_manifest_describes_the_encoder_outputs(translator: Bundle, tmp_path: Path) -> None:
    spec = json.loads((translator.path / MANIFEST).read_text())
    assert [constant["name"] for constant in spec["step"]["constants"]] == [
        "constant.memory", "constant.keys", "constant.mask",
    ]  # fmt: skip
    assert all(constant["variable_length"] for constant in spec["step"]["constants"])
    assert spec["step"]["states"][0]["encoded"]
    assert {file["path"] for file in spec["files"]} == {
        "step.onnx", "encoder.onnx", "vocabulary.json", "source-vocabulary.json",
    }  # fmt: skip
    assert translator.vocabulary_spec("source").size == LETTERS.size
    assert translator.vocabulary_spec("text").kind == v1.VOCABULARY_KIND_SYMBOLS
    assert translator.spec.metrics["padding_largest_difference"] == 0  # bit-exact
    judge = judge_bundle()
    assert not judge.spec.step.inputs
    assert not judge.spec.step.states


class AcrossRows(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        constants, states = super().encode(source, lengths)
        return {**constants, "memory": constants["memory"] + constants["memory"].mean()}, states


class ReadsPadding(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        constants, states = super().encode(source, lengths)
        return constants, {"hidden": states["hidden"] + source.shape[1]}


class Unmasked(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        constants, states = super().encode(source, lengths)
        return {**constants, "keys": constants["keys"] + 1}, states


class AttendsToPadding(Speller):
    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return super().step(inputs, {**constants, "mask": torch.ones_like(constants["mask"])}, state)


class Forgets(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        constants, states = super().encode(source, lengths)
        return {"memory": constants["memory"]}, states


class Fails(Speller):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        raise ValueError("no way")


@pytest.mark.parametrize(
    ("module", "error_message"),
    [
        (Speller, None),
        (AcrossRows, "is not zero after the end of a source|differs by .* alone and in a batch"),
        (ReadsPadding, "differs by .* alone and in a batch"),
        (Unmasked, "constant.keys: is not zero after the end of a source; encode"),
        (AttendsToPadding, "zeros after the end of a source change a result by"),
        (Forgets, r"encode\(\) returns \['constant.memory', 'state.hidden'\], but the constants are"),
        (Fails, r"encode\(\) with source torch.int64 \(3, 12\), .* failed: ValueError: no way"),
    ],
)
def test_encoder_that_breaks_the_contract_is_not_exported(
    module: type[Speller], error_message: str | None, tmp_path: Path
) -> None:
    allowed = nullcontext() if error_message is None else pytest.raises(ExportError, match=error_message)
    with allowed:
        export_translator(module(), tmp_path / "bundle")
    assert (tmp_path / "bundle").exists() == (error_message is None)


def test_source_requires_an_encode_method(tmp_path: Path) -> None:
    class Plain(torch.nn.Module):
        def initial_state(self, rows: int) -> Tensors:
            return {}

        def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
            return {}, {}

    with pytest.raises(ExportError, match=r"Plain needs the method encode\(source, lengths\), because"):
        export_translator(Plain(), tmp_path / "bundle")


def test_symbols_are_separated_by_white_space() -> None:
    vocabulary = SymbolVocabulary.from_texts(["HH AH0 L OW1", "W ER1 L D"], 100, reserved=("\x02", "\x03"))
    assert vocabulary.tokens[:4] == ("\N{REPLACEMENT CHARACTER}", "\x02", "\x03", "L")
    ids = vocabulary.encode("  L OW1\tnope\nL ").tolist()
    assert [vocabulary.tokens[token] for token in ids] == ["L", "OW1", "\N{REPLACEMENT CHARACTER}", "L"]
    decoder = vocabulary.decoder()
    pieces = [decoder.decode(part, final=False) for part in ([3], [], [4, 5], [6])]
    assert "".join(pieces) == " ".join(vocabulary.tokens[3:7])
    assert pieces[1] == ""
    assert SymbolVocabulary(["a", "b"], lower_case=True).encode("A b").tolist() == [0, 1]
    with pytest.raises(EncodingError, match="the symbol 'c' is not in the model's vocabulary") as caught:
        SymbolVocabulary(["a", "b"]).encode("b  a c")
    assert caught.value.position == 5
    with pytest.raises(ValueError, match="got the token 'a b'; a token of a symbol vocabulary has no white"):
        SymbolVocabulary(["a b"])
    with pytest.raises(ValueError, match="the symbol 'a' is listed twice"):
        SymbolVocabulary(["a", "a"])
