"""Subwords: byte-level byte-pair encoding, trained and run by the package `tokenizers`.

Text becomes the bytes of its UTF-8, and the commonest neighbours are joined again and again (Sennrich, Haddow and Birch
2016; on bytes Radford et al. 2019). Nothing is unknown, and a token may be a part of a character. The file is the
package's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elman_bundle.errors import BundleError, EncodingError
from elman_bundle.vocabulary import ByteVocabulary, TextDecoder, TokenIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LONGEST = 16  # bytes of a token that is trained here
# From here on the package's thread, which leaves the interpreter free meanwhile, is worth being woken.
_LONG_TEXT = 1000
# What a vocabulary must give back: every byte that text can hold, and what pre-tokenizers like to treat apart.
_PROBES = (
    *map(chr, [*range(0x100), *range(0x100, 0x800, 0x40), 0x800, *range(0x1000, 0x10000, 0x1000)]),
    *map(chr, [0x10000, 0x40000, 0x80000, 0xC0000, 0x100000]),
    "  a b   c\n\n  d\t e \r\n",
    "0123456789 12 345 6.7",
)


class SubwordVocabulary:
    """Joined bytes of UTF-8 as tokens.

    Args:
        content: a file of the package `tokenizers`: byte-level BPE that gives every text back as it was.

    Raises:
        ValueError: it is none, or one that changes text.
    """

    unknown_id = None

    def __init__(self, content: str) -> None:
        self._content = content
        self._tokenizer = _read(content)
        self.tokens = _tokens(self._tokenizer)
        self._bytes = _spellings(self._tokenizer, self.tokens)
        missing = {bytes([byte]) for byte in range(256)} - set(self._bytes)
        if missing:
            raise ValueError(f"it has no token for the byte {min(missing)[0]}, so there is text that it cannot spell")
        self.characters_per_token = max(_characters_begun(spelled) for spelled in self._bytes if spelled)
        self._check_round_trips()

    def _check_round_trips(self) -> None:
        """Try what the settings alone do not show, such as a special token that text is joined to as well.

        Raises:
            ValueError: decoding does not give back what was encoded.
        """
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        for text in [*_PROBES, *added, *filter(None, map(_as_text, added))]:
            found = self.decoder().decode(self.encode(text).tolist(), final=True)
            if found != text:
                raise ValueError(f"it changes text: of {text!r} it makes {found!r}")

    @classmethod
    def from_texts(cls, texts: Iterable[str], size: int) -> SubwordVocabulary:
        """Train on some texts: the same texts give the same vocabulary.

        Args:
            texts: what to learn from; no token goes from one into the next, or from one word into the next.
            size: how many tokens there are at most; every byte is one of them, so there are 256 or more.
        """
        from tokenizers import Tokenizer
        from tokenizers.decoders import ByteLevel as ByteLevelDecoder
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=size,
            initial_alphabet=ByteLevel.alphabet(),
            max_token_length=_LONGEST,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def read(cls, path: Path) -> SubwordVocabulary:
        """Read a file of the package `tokenizers`.

        Raises:
            BundleError: it cannot be read, or is of another kind. The message names it.
        """
        try:
            return cls(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write the package's file."""
        path.write_text(self._content, encoding="utf-8")

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> TokenIds:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EncodingError(
                f"the character {text[error.start]!r} is half of a surrogate pair, which no text may hold", error.start
            ) from error
        if len(text) < _LONG_TEXT:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array(found.ids, dtype=np.int64)

    def decoder(self) -> TextDecoder:
        return _SubwordDecoder(self._bytes)

    def token_bytes(self) -> list[bytes | None]:
        return list(self._bytes)

    def token_text(self, token: int) -> str:
        spelled = self._bytes[token]
        return self.tokens[token] if spelled is None else spelled.decode(errors="replace")


class _SubwordDecoder:
    def __init__(self, spelled: list[bytes | None]) -> None:
        self._spelled = spelled
        self._decoder = ByteVocabulary().decoder()

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        return self._decoder.decode(b"".join([self._spelled[token] or b"" for token in ids]), final)


def _read(content: str) -> Tokenizer:
    """The package's object, which takes text as it is, all of it, and special tokens only as ids."""
    from tokenizers import Tokenizer

    # Before the package reads it, which for some of what is refused here ends in a panic.
    complaint = _complaint(json.loads(content))
    if complaint is not None:
        raise ValueError(f"{complaint}; needed is byte-level BPE that gives every text back as it was")
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # The package raises nothing narrower.
        raise ValueError(f"the package tokenizers cannot read it: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # What a caller writes as text is text.
    return tokenizer


def _complaint(settings: Any) -> str | None:
    """Why decoding would not give back what was encoded, if so."""
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), dict):
        return "it is no file of the package tokenizers"
    model = settings["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}"
    for name in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            return f"its model has the {name} {model[name]!r}"
    if settings.get("normalizer") is not None:
        return "it has a normalizer, which changes text"
    return _complaint_of_parts(_parts(settings.get("pre_tokenizer")))


def _parts(pre_tokenizer: Any) -> list[Any]:
    if isinstance(pre_tokenizer, dict) and isinstance(pre_tokenizer.get("pretokenizers"), list):
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _complaint_of_parts(parts: list[Any]) -> str | None:
    kinds = [part.get("type") if isinstance(part, dict) else part for part in parts]
    if "ByteLevel" not in kinds:
        return "its pre_tokenizer has no part ByteLevel"
    if kinds.count("ByteLevel") > 1:
        return "its pre_tokenizer has the part ByteLevel more than once, which writes bytes of bytes"
    other = [kind for kind in kinds if kind not in ("ByteLevel", "Split", "Digits")]
    if other:
        return f"its pre_tokenizer has the part {other[0]}"
    for part in parts:
        # What a file does not say the package takes as true.
        if part["type"] == "ByteLevel" and part.get("add_prefix_space", True):
            return "its pre_tokenizer has add_prefix_space, which puts a space before text"
        if part["type"] == "Split" and part.get("behavior") == "Removed":
            return "its pre_tokenizer has a Split that removes text"
    return None


def _tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """As the file writes them, in the order of their ids."""
    tokens: list[str] = []
    for token in range(tokenizer.get_vocab_size()):
        written = tokenizer.id_to_token(token)
        if written is None:
            raise ValueError(f"it has {tokenizer.get_vocab_size()} tokens, but none of the id {token}")
        tokens.append(written)
    return tuple(tokens)


def _spellings(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[bytes | None]:
    """The bytes of each token; None for special ones."""
    added = tokenizer.get_added_tokens_decoder()
    spelled: list[bytes | None] = []
    for token, written in enumerate(tokens):
        if token not in added:
            spelled.append(_bytes_of(written))
        elif added[token].special:
            spelled.append(None)
        elif added[token].lstrip or added[token].rstrip:
            raise ValueError(f"its added token {written!r} takes away the space beside it")
        else:
            spelled.append(written.encode())
    return spelled


def _as_text(written: str) -> str | None:
    """The text of a token as byte-level BPE writes it; None where it is written otherwise, or ends in a character."""
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
    """How files of byte-level BPE write bytes: as the character of that number where it can be seen, the others by the
    characters from 256 on (Radford et al. 2019)."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    characters = {chr(byte): byte for byte in seen}
    return characters | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _characters_begun(spelled: bytes) -> int:
    return sum(byte & 0xC0 != 0x80 for byte in spelled)
