"""Which vocabulary is of which kind, and the file that each has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from elman_bundle.subwords import SubwordVocabulary
from elman_bundle.symbols import SymbolVocabulary
from elman_bundle.vocabulary import (
    ByteVocabulary,
    CharacterVocabulary,
    LabelVocabulary,
    read_tokens,
    write_tokens,
)
from elman_bundle.words import WordVocabulary
from elman_protos import v1

# What a model may read.
InputVocabulary = CharacterVocabulary | ByteVocabulary | WordVocabulary | SubwordVocabulary | SymbolVocabulary
# What a manifest says of one.
VocabularySpec = v1.VocabularySpec
InputKind = Literal["characters", "bytes", "words", "subwords", "symbols"]

_LISTED = {
    "characters": v1.VOCABULARY_KIND_CHARACTERS,
    "words": v1.VOCABULARY_KIND_WORDS,
    "symbols": v1.VOCABULARY_KIND_SYMBOLS,
}

TOKENS = "vocabulary.json"
TOKENIZER = "tokenizer.json"


def write_vocabulary(folder: Path, vocabulary: InputVocabulary, prefix: str = "") -> v1.VocabularySpec:
    """Write the file of a vocabulary, if its kind has one.

    Args:
        folder: where to.
        vocabulary: what to write.
        prefix: what its file's name begins with, where a folder holds several.

    Returns:
        What the manifest says of it, but for its name.
    """
    spec = v1.VocabularySpec(size=vocabulary.size, unknown_token_id=vocabulary.unknown_id)
    if isinstance(vocabulary, ByteVocabulary):
        spec.kind = v1.VOCABULARY_KIND_BYTES
    elif isinstance(vocabulary, SubwordVocabulary):
        spec.kind, spec.file = v1.VOCABULARY_KIND_SUBWORDS, prefix + TOKENIZER
        vocabulary.write(folder / spec.file)
    else:
        spec.kind, spec.file = v1.VOCABULARY_KIND_CHARACTERS, prefix + TOKENS
        if isinstance(vocabulary, WordVocabulary):
            spec.kind, spec.lower_case = v1.VOCABULARY_KIND_WORDS, vocabulary.lower_case
        elif isinstance(vocabulary, SymbolVocabulary):
            spec.kind, spec.lower_case = v1.VOCABULARY_KIND_SYMBOLS, vocabulary.lower_case
        write_tokens(folder / spec.file, vocabulary.tokens)
    return spec


def vocabulary_spec(kind: InputKind, *, lower_case: bool = False, prefix: str = "") -> v1.VocabularySpec:
    """What `write_vocabulary` says of a vocabulary that was made from a corpus, but for its size.

    Args:
        kind: of its tokens.
        lower_case: of words and symbols: whether text is put into lower case first.
        prefix: what its file's name begins with.
    """
    if kind == "bytes":
        return v1.VocabularySpec(kind=v1.VOCABULARY_KIND_BYTES)
    if kind == "subwords":
        return v1.VocabularySpec(kind=v1.VOCABULARY_KIND_SUBWORDS, file=prefix + TOKENIZER)
    return v1.VocabularySpec(kind=_LISTED[kind], file=prefix + TOKENS, unknown_token_id=0, lower_case=lower_case)


def read_vocabulary(folder: Path, spec: v1.VocabularySpec) -> InputVocabulary | LabelVocabulary:
    """Read what a manifest says of a vocabulary.

    Raises:
        BundleError: its file cannot be read. The message names it.
        ValueError: its file holds no vocabulary of this kind.
    """
    if spec.kind == v1.VOCABULARY_KIND_BYTES:
        return ByteVocabulary()
    if spec.kind == v1.VOCABULARY_KIND_SUBWORDS:
        return SubwordVocabulary.read(folder / spec.file)
    tokens = read_tokens(folder / spec.file)
    if spec.kind == v1.VOCABULARY_KIND_LABELS:
        return LabelVocabulary(tokens)
    unknown_id = spec.unknown_token_id if spec.HasField("unknown_token_id") else None
    if spec.kind == v1.VOCABULARY_KIND_WORDS:
        return WordVocabulary(tokens, unknown_id, lower_case=spec.lower_case)
    if spec.kind == v1.VOCABULARY_KIND_SYMBOLS:
        return SymbolVocabulary(tokens, unknown_id, lower_case=spec.lower_case)
    return CharacterVocabulary(tokens, unknown_id)
