"""The kinds of vocabularies, and the file of each. A new kind is registered here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from elman_bundle.bundle_errors import BundleError
from elman_bundle.byte_vocabulary import ByteVocabulary
from elman_bundle.character_vocabulary import CharacterVocabulary
from elman_bundle.label_vocabulary import LabelVocabulary
from elman_bundle.subword_vocabulary import SubwordVocabulary
from elman_bundle.symbol_vocabulary import SymbolVocabulary
from elman_bundle.word_vocabulary import WordVocabulary
from elman_protos import v1

# The vocabularies that a model's input may have.
InputVocabulary = CharacterVocabulary | ByteVocabulary | WordVocabulary | SubwordVocabulary | SymbolVocabulary
# The entry of a vocabulary in a manifest.
VocabularySpec = v1.VocabularySpec
InputKind = Literal["characters", "bytes", "words", "subwords", "symbols"]

# The kinds whose file is a list of tokens.
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
        folder: the folder to write to.
        vocabulary: the vocabulary.
        prefix: the prefix of the file's name, for a folder with several vocabularies.

    Returns:
        Its entry for the manifest, without a name.
    """
    spec = v1.VocabularySpec(size=vocabulary.size, unknown_token_id=vocabulary.unknown_id)
    if isinstance(vocabulary, ByteVocabulary):
        spec.kind, spec.universal_newlines = v1.VOCABULARY_KIND_BYTES, vocabulary.universal_newlines
    elif isinstance(vocabulary, SubwordVocabulary):
        spec.kind, spec.universal_newlines = v1.VOCABULARY_KIND_SUBWORDS, vocabulary.universal_newlines
        spec.file = prefix + TOKENIZER
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
    """The entry that `write_vocabulary` returns for a vocabulary made from a corpus, without its size. A corpus is read
    with universal newlines.

    Args:
        kind: the kind of its tokens.
        lower_case: for words and symbols, whether text is converted to lower case.
        prefix: the prefix of the file's name.
    """
    if kind == "bytes":
        return v1.VocabularySpec(kind=v1.VOCABULARY_KIND_BYTES, universal_newlines=True)
    if kind == "subwords":
        return v1.VocabularySpec(kind=v1.VOCABULARY_KIND_SUBWORDS, file=prefix + TOKENIZER, universal_newlines=True)
    return v1.VocabularySpec(kind=_LISTED[kind], file=prefix + TOKENS, unknown_token_id=0, lower_case=lower_case)


def read_vocabulary(
    folder: Path, spec: v1.VocabularySpec, inner_id: int | None = None
) -> InputVocabulary | LabelVocabulary:
    """Read the vocabulary of a manifest's entry.

    Args:
        folder: the folder with its file.
        spec: the entry.
        inner_id: the token that inner nodes of trees read, if it is one of this vocabulary.

    Raises:
        BundleError: its file cannot be read. The message names it.
        ValueError: its file holds no vocabulary of this kind.
    """
    control = [getattr(spec, name) for name in ("begin_token_id", "end_token_id") if spec.HasField(name)]
    if inner_id is not None:
        control.append(inner_id)
    if spec.kind == v1.VOCABULARY_KIND_BYTES:
        return ByteVocabulary(control_ids=control, universal_newlines=spec.universal_newlines)
    if spec.kind == v1.VOCABULARY_KIND_SUBWORDS:
        path = folder / spec.file
        return SubwordVocabulary.read(path, control_ids=control, universal_newlines=spec.universal_newlines)
    tokens = read_tokens(folder / spec.file)
    if spec.kind == v1.VOCABULARY_KIND_LABELS:
        return LabelVocabulary(tokens)
    unknown_id = spec.unknown_token_id if spec.HasField("unknown_token_id") else None
    if spec.kind == v1.VOCABULARY_KIND_WORDS:
        return WordVocabulary(tokens, unknown_id, lower_case=spec.lower_case, control_ids=control)
    if spec.kind == v1.VOCABULARY_KIND_SYMBOLS:
        return SymbolVocabulary(tokens, unknown_id, lower_case=spec.lower_case, control_ids=control)
    return CharacterVocabulary(tokens, unknown_id, control_ids=control)


def write_tokens(path: Path, tokens: Sequence[str]) -> None:
    """Write tokens in the order of their ids as JSON: {"tokens": [...]}."""
    path.write_text(json.dumps({"tokens": list(tokens)}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def read_tokens(path: Path) -> list[str]:
    """Read the tokens of `write_tokens`.

    Raises:
        BundleError: the file is not such a JSON object.
    """
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))["tokens"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BundleError(f'{path}: expected a JSON object {{"tokens": [...]}}: {error}') from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise BundleError(f"{path}: 'tokens' must be a list of strings")
    return tokens
