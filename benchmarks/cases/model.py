"""The measured models: an LSTM with random weights, its bundles written by the project's own export, and U's graphs.

The files are cached in a git-ignored folder and written again when the code that writes them has changed, so that the
results always describe the current exporter.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.processes.machine import ROOT, SCRATCH
from benchmarks.references.graphs import Sizes, write_int8, write_plain_step, write_products
from elman_bundle import CharacterVocabulary
from elman_export import NextToken, Token, export_bundle
from elman_export.network_steps import NetworkStep
from elman_training.language.recurrent_network import RecurrentNetwork

PRECISIONS = ("fp32", "int8")
# Standard deviation of a trained character model's logits, which gives about two nats of entropy.
_LOGITS_SPREAD = 2.0
_MADE_BY = "made_by.txt"
_FIRST_CHARACTER = 0x20


@dataclass(frozen=True)
class Model:
    """The files of a model.

    Attributes:
        sizes: sizes of its layers.
        folder: the folder with the files.
    """

    sizes: Sizes
    folder: Path

    def bundle(self, precision: str) -> Path:
        """Return the bundle that the server serves; the model is named after the precision."""
        return self.folder / precision

    def plain_step(self, precision: str) -> Path:
        """Return U's graph."""
        return self.folder / f"plain-{precision}.onnx"

    def products(self, precision: str) -> Path:
        """Return the graph of the matrix products alone."""
        return self.folder / f"products-{precision}.onnx"


def prepare_model(sizes: Sizes, precisions: Sequence[str]) -> Model:
    """Return the model's files; write them if they are missing or were written by different code."""
    model = Model(sizes, SCRATCH / "models" / sizes.name)
    missing = [precision for precision in precisions if _made_by(model.bundle(precision)) != _makers()]
    if missing:
        network = make_network(sizes)
        for precision in missing:
            _make(model, network, precision)
    return model


def make_network(sizes: Sizes) -> RecurrentNetwork:
    """Return a network with random weights, the same at every call, and with a realistic spread of the logits."""
    torch.manual_seed(0)
    network = RecurrentNetwork(
        cell="lstm",
        tokens=sizes.vocabulary,
        outputs=sizes.vocabulary,
        layers=2,
        embedding=sizes.embedding,
        hidden=sizes.hidden,
        dropout=0.0,
    ).eval()
    with torch.no_grad():
        network.embedding.weight.normal_(std=1.0)
        for cell in network.cells:
            cell.input_weight.mul_(2.0)
            cell.hidden_weight.mul_(2.0)
        tokens = torch.randint(sizes.vocabulary, (8, 64))
        spread = network(tokens, network.initial_state(8))[0].std()
        network.head.weight.mul_(_LOGITS_SPREAD / spread)
    return network


def _make(model: Model, network: RecurrentNetwork, precision: str) -> None:
    folder = model.bundle(precision)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_products(model.sizes, precision, model.products(precision))
    # The int8 graph is quantized from the fp32 graph, as onnxruntime's own tool does.
    write_plain_step(network, model.plain_step("fp32"))
    if precision == "int8":
        write_int8(model.plain_step("fp32"), model.plain_step("int8"))
    vocabulary = CharacterVocabulary([chr(_FIRST_CHARACTER + index) for index in range(model.sizes.vocabulary)])
    export_bundle(
        NetworkStep(network),
        folder,
        name=precision,
        inputs={"token": Token(vocabulary)},
        outputs={"logits": NextToken()},
        description="Random weights, to be measured.",
        quantize="int8" if precision == "int8" else None,
    )
    _note(folder).write_text(_makers())


def _note(bundle: Path) -> Path:
    # Next to the bundle: a bundle contains only files that its manifest names.
    return bundle.with_name(f"{bundle.name}-{_MADE_BY}")


def _made_by(bundle: Path) -> str:
    return _note(bundle).read_text() if _note(bundle).exists() else ""


@cache
def _makers() -> str:
    """Return a digest of the code that writes the files."""
    sources = [Path(__file__), ROOT / "benchmarks" / "references" / "graphs.py"]
    training = ROOT / "training" / "elman_training"
    sources += [*sorted((training / "cells").glob("*.py")), training / "language" / "recurrent_network.py"]
    sources += sorted([*(ROOT / "export").rglob("*.py"), *(ROOT / "bundle").rglob("*.py")])
    digest = hashlib.sha256(version("torch").encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()
