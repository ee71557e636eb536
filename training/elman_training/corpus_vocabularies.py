"""Vocabularies made from a training corpus; held-out text has no part in them."""

from __future__ import annotations

from collections.abc import Sequence

from elman_bundle import (
    ByteVocabulary,
    CharacterVocabulary,
    InputVocabulary,
    SubwordVocabulary,
    SymbolVocabulary,
    WordVocabulary,
)
from elman_bundle.vocabulary_files import InputKind
from elman_training.config import TextConfig


def make_vocabulary(
    kind: InputKind, texts: Sequence[str], size: int, minimum_count: int, *, lower_case: bool = False
) -> InputVocabulary:
    """Make the vocabulary of some texts.

    Args:
        kind: what a token is.
        texts: the texts to count in.
        size: the largest number of tokens, for words, subwords and symbols.
        minimum_count: rarer characters, words and symbols are read as the unknown token.
        lower_case: whether words and symbols are converted to lower case.
    """
    if kind == "bytes":
        return ByteVocabulary(universal_newlines=True)
    if kind == "subwords":
        return SubwordVocabulary.from_texts(texts, size)
    if kind in ("words", "symbols"):
        pieces = WordVocabulary if kind == "words" else SymbolVocabulary
        return pieces.from_texts(texts, size, minimum_count=minimum_count, lower_case=lower_case)
    return CharacterVocabulary.from_text("".join(texts), minimum_count)


def text_vocabulary(config: TextConfig, texts: Sequence[str]) -> InputVocabulary:
    """Make the vocabulary that a configuration asks for."""
    return make_vocabulary(
        config.vocabulary, texts, config.vocabulary_size, config.minimum_count, lower_case=config.lower_case
    )
