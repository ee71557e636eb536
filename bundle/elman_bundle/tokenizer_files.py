"""Files of the package `tokenizers`: reading one, and checking that it is byte-level BPE that preserves every text.

A file may bring text into Unicode's normal form C, which is the same text for Unicode; then it preserves that form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_REMEDY = (
    "Change this in the file if the model also knows text as it is; otherwise list the tokens of the file as a "
    "vocabulary of the kind SYMBOLS, encode texts where you call the model, and send token ids"
)
# No character has these bytes in UTF-8.
_NEVER_TEXT = {bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
_BYTES_OF_TEXT = {bytes([byte]) for byte in range(256)} - _NEVER_TEXT


def normalizes(content: str) -> bool:
    """Whether a file that `read_tokenizer` reads brings text into the normal form C."""
    return bool(_normalizers(json.loads(content).get("normalizer")))


def check_bytes(spelled: Sequence[bytes | None]) -> None:
    """Check that tokens can spell every text.

    Raises:
        ValueError: a byte has no token.
    """
    missing = _BYTES_OF_TEXT - set(spelled)
    if missing:
        raise ValueError(
            f"it has no token for the byte {min(missing)[0]}, so there is text that it cannot spell. Train it with the "
            "initial alphabet pre_tokenizers.ByteLevel.alphabet(), or add a token for each byte"
        )


def read_tokenizer(content: str) -> Tokenizer:
    """Read a file's content.

    Returns:
        A tokenizer that neither truncates nor pads, and that encodes special tokens in a text as text.

    Raises:
        ValueError: the file is not byte-level BPE, or its settings change text.
    """
    from tokenizers import Tokenizer

    # Checked before the package reads it, because some of what is refused here makes the package panic.
    problem = _problem(json.loads(content))
    if problem is not None:
        raise ValueError(f"{problem}. Subwords need byte-level BPE that preserves every text. {_REMEDY}")
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # The package raises nothing narrower.
        raise ValueError(f"the package tokenizers cannot read it: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _problem(settings: Any) -> str | None:
    """Why decoding would not reverse encoding; None if it would."""
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), dict):
        return "it is no file of the package tokenizers"
    model = settings["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}"
    for name in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            return f"its model has the {name} {model[name]!r}"
    kinds = _normalizers(settings.get("normalizer"))
    other = [kind for kind in kinds if kind != "NFC"]
    if other:
        return f"it has the normalizer {other[0]}, which changes text"
    return _problem_of_parts(_parts(settings.get("pre_tokenizer")))


def _normalizers(settings: Any) -> list[Any]:
    """The kinds of the normalizers of a file; none if it has none."""
    if settings is None:
        return []
    if isinstance(settings, dict) and isinstance(settings.get("normalizers"), list):
        return [kind for part in settings["normalizers"] for kind in _normalizers(part)]
    return [settings.get("type") if isinstance(settings, dict) else settings]


def _parts(pre_tokenizer: Any) -> list[Any]:
    if isinstance(pre_tokenizer, dict) and isinstance(pre_tokenizer.get("pretokenizers"), list):
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _problem_of_parts(parts: list[Any]) -> str | None:
    kinds = [part.get("type") if isinstance(part, dict) else part for part in parts]
    if "ByteLevel" not in kinds:
        return "its pre_tokenizer has no part ByteLevel"
    if kinds.count("ByteLevel") > 1:
        return "its pre_tokenizer has the part ByteLevel more than once, which encodes bytes twice"
    other = [kind for kind in kinds if kind not in ("ByteLevel", "Split", "Digits")]
    if other:
        return f"its pre_tokenizer has the part {other[0]}"
    for part in parts:
        # The package takes a missing setting as true.
        if part["type"] == "ByteLevel" and part.get("add_prefix_space", True):
            return "its pre_tokenizer has add_prefix_space, which puts a space before text"
        if part["type"] == "Split" and part.get("behavior") == "Removed":
            return "its pre_tokenizer has a Split that removes text"
    return None


def token_strings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokens as the file writes them, in the order of their ids.

    Raises:
        ValueError: an id has no token.
    """
    tokens: list[str] = []
    for token in range(tokenizer.get_vocab_size()):
        written = tokenizer.id_to_token(token)
        if written is None:
            raise ValueError(f"it has {tokenizer.get_vocab_size()} tokens, but none of the id {token}")
        tokens.append(written)
    return tuple(tokens)


def token_spellings(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[bytes | None]:
    """The bytes of each token; None for special tokens.

    Raises:
        ValueError: a token is not written as byte-level BPE writes bytes, or removes the space next to it.
    """
    added = tokenizer.get_added_tokens_decoder()
    spelled: list[bytes | None] = []
    for token, written in enumerate(tokens):
        if token not in added:
            spelled.append(_bytes_of(written))
        elif added[token].special:
            spelled.append(None)
        elif added[token].lstrip or added[token].rstrip:
            raise ValueError(f"its added token {written!r} removes the space next to it")
        else:
            spelled.append(written.encode())
    return spelled


def text_or_none(written: str) -> str | None:
    """The text of a token as byte-level BPE writes it; None if it is written otherwise or ends within a character."""
    try:
        return _bytes_of(written).decode()
    except ValueError:
        return None


def _bytes_of(written: str) -> bytes:
    byte_of = _byte_of_character()
    wrong = next((character for character in written if character not in byte_of), None)
    if wrong is not None:
        raise ValueError(f"its token {written!r} holds {wrong!r}, which is not how byte-level BPE writes a byte")
    return bytes([byte_of[character] for character in written])


@cache
def _byte_of_character() -> Mapping[str, int]:
    """The characters by which files of byte-level BPE write bytes (Radford et al. 2019).

    A byte that is a printable Latin-1 character is written as that character, the others as the characters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}
