"""Small networks with random weights, and their bundles, written by the real export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from elman_bundle import Bundle, ByteVocabulary, CharacterVocabulary
from elman_export import Labels, NextToken, Token, export_bundle
from elman_export.contract import Output
from elman_export.network_steps import NetworkStep
from elman_training.language.recurrent_network import RecurrentNetwork
from tests.support.shared import shared_bundle

# Includes two-, three- and four-byte characters, so that splitting one would be detected.
CHARACTERS = CharacterVocabulary([*"�abcdefghijklmnopqrstuvwxyz .,\n", "é", "ß", "語", "🌲"], unknown_id=0)
CLASSES = ("red", "green", "blue")


def make_network(
    cell: str, outputs: int, layers: int = 2, hidden: int = 37, *, tokens: int = CHARACTERS.size, embedding: int = 16
) -> RecurrentNetwork:
    torch.manual_seed(0)
    return RecurrentNetwork(
        cell=cell, tokens=tokens, outputs=outputs, layers=layers, embedding=embedding, hidden=hidden, dropout=0.0
    )


def make_small_network(tokens: int, outputs: int | None = None) -> RecurrentNetwork:
    """Return a network of one small layer; without `outputs` it scores the next token."""
    return make_network("gru", outputs or tokens, layers=1, hidden=16, tokens=tokens, embedding=8)


def write_network(
    network: RecurrentNetwork,
    folder: Path,
    name: str,
    token: Token,
    meaning: Output | None = None,
    quantize: Literal["int8"] | None = None,
) -> None:
    """Write the bundle of a network into a folder; without `meaning` its output scores the next token."""
    export_bundle(
        NetworkStep(network),
        folder,
        name=name,
        inputs={"token": token},
        outputs={"logits": meaning or NextToken()},
        quantize=quantize,
    )


def write_characters(
    folder: Path, name: str, cell: str, meaning: Output | None = None, quantize: Literal["int8"] | None = None
) -> None:
    """Write the bundle of a network with two layers that reads CHARACTERS."""
    outputs = len(meaning.names) if isinstance(meaning, Labels) else CHARACTERS.size
    write_network(make_network(cell, outputs), folder, name, Token(CHARACTERS), meaning, quantize)


def byte_bundle() -> Bundle:
    """Return a language model of bytes."""
    return shared_bundle(
        "bytes", lambda folder: write_network(make_small_network(256), folder, "bytes", Token(ByteVocabulary()))
    )
