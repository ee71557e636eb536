"""Damaged or inconsistent bundles are rejected with an error that names the location."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from elman_bundle import MANIFEST, Bundle, BundleError, load_bundle
from elman_server.engine import OnnxEngine, Opener, ProviderChoice
from elman_server.errors import ModelLoadError
from elman_server.event_loop import ServerEventLoop
from elman_server.loading import find_bundles, serve_bundle
from elman_server.settings import Settings
from tests.support.manifests import Change, change, reseal

Bundles = Mapping[str, Bundle]


@pytest.fixture
def copy(bundles: Bundles, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles["gru"].path, tmp_path / "gru"))


def engine(bundle: Bundle, choice: ProviderChoice = ProviderChoice.CPU) -> OnnxEngine:
    return OnnxEngine(bundle, capacity=2, opener=Opener(choice, 1), run_seconds=0.005)


def test_loading_restores_the_written_bundle(bundles: Bundles) -> None:
    for bundle in bundles.values():
        again = load_bundle(bundle.path)
        assert again.spec == bundle.spec
        assert again.digest == bundle.digest
    assert len({bundle.digest for bundle in bundles.values()}) == len(bundles)


def test_folder_without_a_manifest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: cannot read manifest\.json"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        find_bundles([tmp_path / "nowhere"])


@pytest.mark.parametrize("name", ["step.onnx", "vocabulary.json"])
def test_missing_file_is_reported(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: cannot be read, but the manifest lists it"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["step.onnx", "vocabulary.json"])
def test_changed_file_is_reported(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=f"{name}: wrong digest: the manifest says sha256 [0-9a-f]{{64}}"):
        load_bundle(copy)


_INCONSISTENT: dict[str, tuple[Change, str]] = {
    "not json": (lambda m: m.update(nonsense=1), "nonsense"),
    "version": (lambda m: m.update(manifest_version=2), "manifest_version is 2, but this elman reads version 1"),
    "name": (lambda m: m.update(name="no spaces"), "name 'no spaces' is not 1 to 64"),
    "no graph": (lambda m: m["step"].pop("file"), "step.file is missing"),
    "no inputs": (lambda m: m["step"].pop("inputs"), "step.inputs is empty"),
    "no outputs": (lambda m: m["step"].pop("outputs"), "step.outputs is empty"),
    "state without output": (
        lambda m: m["step"]["states"][0].pop("output_name"),
        r"step: graph outputs has an entry without a name",
    ),
    "state output twice": (
        lambda m: m["step"]["states"][1].update(output_name=m["step"]["states"][0]["output_name"]),
        "step: graph outputs names next.layer0.hidden twice",
    ),
    "data type": (lambda m: m["step"]["states"][0].pop("data_type"), r"step.states\[state.layer0.hidden\].data_type"),
    "data type of the future": (
        lambda m: m["step"]["states"][0].update(data_type=99),
        r"data_type is missing or not known",
    ),
    "shape": (lambda m: m["step"]["states"][0].update(shape=[0]), r"step.states\[state.layer0.hidden\].shape"),
    "row axis": (lambda m: m["step"]["states"][0].update(row_axis=5), r"step.states\[.*\].row_axis is 5"),
    "vocabulary": (
        lambda m: m["step"]["inputs"][0]["token"].update(vocabulary="nope"),
        r"step.inputs\[token\].token.vocabulary 'nope' is not one of \['text'\]",
    ),
    "vocabulary size": (lambda m: m["vocabularies"][0].update(size=7), "size is 7, but vocabulary.json has"),
    "unknown token": (lambda m: m["vocabularies"][0].update(unknown_token_id=999), "unknown_token_id is 999"),
    "output width": (lambda m: m["step"]["outputs"][0].update(shape=[3]), r"step.outputs\[logits\].shape is \[3\]"),
    "unlisted file": (lambda m: m.update(files=m["files"][:1]), "is used but not listed"),
    "way out": (
        lambda m: m["files"].append({"path": "../secret", "sha256": "0" * 64}),
        "'../secret' leads out of the bundle",
    ),
}


@pytest.mark.parametrize("name", _INCONSISTENT)
def test_an_inconsistent_manifest_is_refused(copy: Path, name: str) -> None:
    edit, error_message = _INCONSISTENT[name]
    change(copy, edit)
    with pytest.raises(BundleError, match=error_message) as caught:
        load_bundle(copy)
    assert str(copy / MANIFEST) in str(caught.value)


def test_two_models_with_the_same_name_are_rejected(bundles: Bundles, copy: Path) -> None:
    with pytest.raises(BundleError, match="both hold a model named 'gru'"):
        find_bundles([copy, bundles["gru"].path])
    assert [bundle.name for bundle in find_bundles([copy.parent])] == ["gru"]


def test_graph_that_onnxruntime_rejects_is_reported(copy: Path) -> None:
    (copy / "step.onnx").write_bytes(b"no graph")
    bundle = reseal(copy)
    with pytest.raises(ModelLoadError, match=r"step\.onnx: onnxruntime rejects the graph"):
        engine(bundle)


def test_state_without_its_graph_output_is_rejected(copy: Path) -> None:
    change(copy, lambda m: m["step"]["states"][0].update(output_name="nowhere"))
    bundle = reseal(copy)
    with pytest.raises(ModelLoadError, match=r"step\.onnx: the manifest names the state's next value 'nowhere'"):
        engine(bundle)


@pytest.mark.parametrize(
    ("edit", "error_message"),
    [
        (lambda m: m["step"]["states"][0].update(shape=[36]), r"has shape \['\w+', 37\], the manifest says"),
        (lambda m: m["step"]["states"][0].update(data_type="DATA_TYPE_FLOAT16"), "the manifest says float16"),
        (lambda m: m["step"]["states"].pop(), "the graph needs the input 'state.layer1.hidden'"),
        (lambda m: m["step"]["inputs"][0].update(name="x"), "the manifest names the input 'x'"),
    ],
)
def test_graph_that_contradicts_the_manifest_is_rejected(copy: Path, edit: Change, error_message: str) -> None:
    change(copy, edit)
    bundle = reseal(copy)
    with pytest.raises(ModelLoadError, match=error_message):
        engine(bundle)


def test_missing_cuda_is_an_error_and_auto_falls_back_to_the_cpu(bundles: Bundles) -> None:
    if engine(bundles["gru"], ProviderChoice.AUTO).provider == "cuda":
        pytest.skip("CUDA loads here")
    with pytest.raises(ModelLoadError, match="cuda was asked for, but CUDA does not load here"):
        engine(bundles["gru"], ProviderChoice.CUDA)


@pytest.mark.cuda
def test_cuda_is_used_where_it_loads(bundles: Bundles) -> None:
    if engine(bundles["gru"], ProviderChoice.AUTO).provider != "cuda":
        pytest.skip("onnxruntime loads no CUDA here")
    assert engine(bundles["gru"], ProviderChoice.CUDA).provider == "cuda"


async def test_model_with_unsupported_inputs_is_refused(copy: Path) -> None:

    change(copy, lambda m: m["step"]["inputs"][0].pop("token"))
    change(copy, lambda m: m["step"]["outputs"][0].pop("next_token_logits"))
    bundle = reseal(copy)
    with pytest.raises(ModelLoadError, match="a step that reads numbers is served if it has labels"):
        serve_bundle(bundle, Settings(provider=ProviderChoice.CPU), ServerEventLoop.running())
