"""Bundles for tests: small, with random weights, made by the real export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch

from bundle import Bundle, CharacterVocabulary, load_bundle
from export import Labels, NextToken, Token, export_bundle
from export.contract import Output
from export.training_run import NetworkStep
from training.network import RecurrentNetwork

# Two-, three- and four-byte characters among them, so that cutting one would show.
CHARACTERS = CharacterVocabulary([*"�abcdefghijklmnopqrstuvwxyz .,\n", "é", "ß", "語", "🌲"], unknown_id=0)
CLASSES = ("red", "green", "blue")
_LABELLED: Mapping[str, Output] = {"tags": Labels(CLASSES, "step"), "classes": Labels(CLASSES, "sequence")}


def make_network(cell: str, outputs: int, layers: int = 2, hidden: int = 37) -> RecurrentNetwork:
    torch.manual_seed(0)
    return RecurrentNetwork(
        cell=cell, tokens=CHARACTERS.size, outputs=outputs, layers=layers, embedding=16, hidden=hidden, dropout=0.0
    )


def make_bundle(folder: Path, name: str, cell: str, meaning: Output, quantize: Literal["int8"] | None = None) -> Bundle:
    outputs = len(meaning.names) if isinstance(meaning, Labels) else CHARACTERS.size
    export_bundle(
        NetworkStep(make_network(cell, outputs)),
        folder / name,
        name=name,
        inputs={"token": Token(CHARACTERS)},
        outputs={"logits": meaning},
        quantize=quantize,
    )
    return load_bundle(folder / name)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By name: a language model of each cell, one of them in 8-bit integers too, a tagger and a classifier."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {"lstm-int8": make_bundle(folder, "lstm-int8", "lstm", NextToken(), quantize="int8")}
    made |= {cell: make_bundle(folder, cell, cell, NextToken()) for cell in ("elman", "lstm", "gru")}
    return made | {name: make_bundle(folder, name, "gru", meaning) for name, meaning in _LABELLED.items()}
