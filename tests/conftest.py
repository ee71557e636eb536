"""Bundles for tests: small, with random weights, made by the real export."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch

from elman_bundle import Bundle, ByteVocabulary, CharacterVocabulary, load_bundle
from elman_export import Labels, NextToken, Token, export_bundle
from elman_export.contract import Output
from elman_export.networks import NetworkStep
from elman_training.network import RecurrentNetwork
from tests.trees import make_tree_bundles

# Two-, three- and four-byte characters among them, so that cutting one would show.
CHARACTERS = CharacterVocabulary([*"�abcdefghijklmnopqrstuvwxyz .,\n", "é", "ß", "語", "🌲"], unknown_id=0)
CLASSES = ("red", "green", "blue")
_LABELLED: Mapping[str, Output] = {"tags": Labels(CLASSES, "step"), "classes": Labels(CLASSES, "sequence")}


def pytest_configure() -> None:
    """Where tests are started behind somebody's back (nohup, a shell's &), Ctrl-C is ignored, and by what they start,
    too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def make_network(
    cell: str, outputs: int, layers: int = 2, hidden: int = 37, *, tokens: int = CHARACTERS.size, embedding: int = 16
) -> RecurrentNetwork:
    torch.manual_seed(0)
    return RecurrentNetwork(
        cell=cell, tokens=tokens, outputs=outputs, layers=layers, embedding=embedding, hidden=hidden, dropout=0.0
    )


def make_small_network(tokens: int, outputs: int | None = None) -> RecurrentNetwork:
    """One small layer; without `outputs` it scores the next token."""
    return make_network("gru", outputs or tokens, layers=1, hidden=16, tokens=tokens, embedding=8)


def export_network(
    network: RecurrentNetwork,
    folder: Path,
    name: str,
    token: Token,
    meaning: Output | None = None,
    quantize: Literal["int8"] | None = None,
) -> Bundle:
    """The bundle of a network, in a folder of its name; without `meaning` its output scores the next token."""
    export_bundle(
        NetworkStep(network),
        folder / name,
        name=name,
        inputs={"token": token},
        outputs={"logits": meaning or NextToken()},
        quantize=quantize,
    )
    return load_bundle(folder / name)


def make_bundle(folder: Path, name: str, cell: str, meaning: Output, quantize: Literal["int8"] | None = None) -> Bundle:
    outputs = len(meaning.names) if isinstance(meaning, Labels) else CHARACTERS.size
    return export_network(make_network(cell, outputs), folder, name, Token(CHARACTERS), meaning, quantize)


def make_byte_bundle(folder: Path) -> Bundle:
    return export_network(make_small_network(256), folder, "bytes", Token(ByteVocabulary()))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By name: a language model of each cell, one of them in 8-bit integers too, a tagger and a classifier."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {"lstm-int8": make_bundle(folder, "lstm-int8", "lstm", NextToken(), quantize="int8")}
    made |= {cell: make_bundle(folder, cell, cell, NextToken()) for cell in ("elman", "lstm", "gru")}
    return made | {name: make_bundle(folder, name, "gru", meaning) for name, meaning in _LABELLED.items()}


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose sequences begin with a token of their own, and end with one sooner or later."""
    token = Token(CharacterVocabulary("^$abc"), begin_id=0, end_id=1)
    return export_network(make_small_network(5), tmp_path_factory.mktemp("ends"), "ends", token)


@pytest.fixture(scope="session")
def tree_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By name: a binary Tree-LSTM and a child-sum one."""
    return make_tree_bundles(tmp_path_factory.mktemp("trees"))
