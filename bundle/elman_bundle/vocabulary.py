"""Text and labels to ids and back.

What every kind of text has in common stands here, and the three kinds that need no rule for cutting text: characters
(one Unicode code point a token), bytes (one byte of UTF-8 a token) and labels. Decoding is incremental and never gives
out a part of a character.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from elman_bundle.errors import BundleError, EncodingError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# What our own vocabularies use as tokens that no text has: ASCII's "start of text", "end of text" and, for nodes of
# trees without a word of their own, "null".
BEGIN, END, INNER = "\x02", "\x03", "\x00"

TokenIds = NDArray[np.int64]


class TextDecoder(Protocol):
    """Turns the ids of one sequence into text, piece by piece."""

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        """The text of `ids` after everything given before; what is not a whole character yet is held back.

        With `final`, nothing more will come: a held-back part is given out as U+FFFD.
        """
        ...


class TextVocabulary(Protocol):
    """What the inputs of a model may be: a mapping from text to token ids and back."""

    @property
    def size(self) -> int:
        """The number of tokens; ids are 0 to size - 1."""
        ...

    @property
    def unknown_id(self) -> int | None:
        """The id that stands for everything outside the vocabulary, if there is one."""
        ...

    @property
    def characters_per_token(self) -> int:
        """The most characters of a text that one token can stand for, at least 1."""
        ...

    def encode(self, text: str) -> TokenIds:
        """The ids of `text`, int64 [tokens].

        Raises:
            EncodingError: something is outside a vocabulary that has no unknown token.
        """
        ...

    def decoder(self) -> TextDecoder:
        """A new decoder for one sequence."""
        ...

    def token_bytes(self) -> list[bytes | None]:
        """What each token spells in UTF-8, by id; None for one that is never text."""
        ...

    def token_text(self, token: int) -> str:
        """One token as people may be shown it: a part of a character as U+FFFD."""
        ...


class CharacterVocabulary:
    """One Unicode code point a token.

    Args:
        tokens: the characters in the order of their ids.
        unknown_id: the id that stands for every character that is not listed. Its own character is what it is decoded
            to, U+FFFD in vocabularies made by `from_text`, and is read as unknown itself.
    """

    def __init__(self, tokens: Sequence[str], unknown_id: int | None = None) -> None:
        wrong = next((token for token in tokens if len(token) != 1), None)
        if wrong is not None:
            raise ValueError(f"a token of a character vocabulary is one character, but there is {wrong!r}")
        check_distinct(tokens, "character")
        check_unknown_id(unknown_id, tokens)
        self.tokens = tuple(tokens)
        self.unknown_id = unknown_id
        self.characters_per_token = 1
        code_points = np.array([ord(token) for token in tokens], dtype=np.uint32)
        self._order = np.argsort(code_points)
        self._sorted = code_points[self._order]

    @classmethod
    def from_text(cls, text: str, minimum_count: int = 1) -> CharacterVocabulary:
        """The characters that occur at least `minimum_count` times, sorted, after the unknown token with id 0."""
        counts = Counter(text)
        known = sorted(token for token, count in counts.items() if count >= minimum_count and token != UNKNOWN)
        return cls([UNKNOWN, *known], unknown_id=0)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> TokenIds:
        code_points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        nearest = np.minimum(np.searchsorted(self._sorted, code_points), self.size - 1)
        known = self._sorted[nearest] == code_points
        ids = self._order[nearest].astype(np.int64)
        if not known.all():
            if self.unknown_id is None:
                position = int(np.argmin(known))
                raise EncodingError(f"the character {text[position]!r} is not in the model's vocabulary", position)
            ids[~known] = self.unknown_id
        return ids

    def decoder(self) -> TextDecoder:
        return JoiningDecoder(self.tokens)

    def token_bytes(self) -> list[bytes | None]:
        return [None if token == self.unknown_id else in_utf8(text) for token, text in enumerate(self.tokens)]

    def token_text(self, token: int) -> str:
        return self.tokens[token]


def check_distinct(tokens: Sequence[str], kind: str) -> None:
    """Refuse a list that names a token twice.

    Raises:
        ValueError: it does.
    """
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise ValueError(f"the {kind} {twice!r} is listed twice")


def check_unknown_id(unknown_id: int | None, tokens: Sequence[str]) -> None:
    """Refuse an unknown token that is none of the tokens.

    Raises:
        ValueError: it is none.
    """
    if unknown_id is not None and not 0 <= unknown_id < len(tokens):
        raise ValueError(f"the unknown token's id {unknown_id} is outside 0 to {len(tokens) - 1}")


def in_utf8(text: str) -> bytes | None:
    """None for what UTF-8 cannot spell: half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


class JoiningDecoder:
    """Decodes tokens that are whole characters each.

    Args:
        tokens: their texts, in the order of their ids.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        return "".join([self._tokens[token] for token in ids])


class ByteVocabulary:
    """One byte of UTF-8 a token: nothing is unknown, and a character takes one to four tokens."""

    size = 256
    unknown_id = None
    characters_per_token = 1
    tokens = None  # There is nothing to list.

    def encode(self, text: str) -> TokenIds:
        return np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8).astype(np.int64)

    def decoder(self) -> TextDecoder:
        return _ByteDecoder()

    def token_bytes(self) -> list[bytes | None]:
        return [bytes([token]) for token in range(self.size)]

    def token_text(self, token: int) -> str:
        return bytes([token]).decode(errors="replace")


class _ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        return self._decoder.decode(bytes(ids), final)


class LabelVocabulary:
    """The names of classes.

    Args:
        labels: the names in the order of their ids.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.tokens = tuple(labels)
        check_distinct(self.tokens, "label")

    @property
    def size(self) -> int:
        return len(self.tokens)


Vocabulary = TextVocabulary | LabelVocabulary


def write_tokens(path: Path, tokens: Sequence[str]) -> None:
    """Write a vocabulary's tokens in the order of their ids as JSON: {"tokens": [...]}."""
    path.write_text(json.dumps({"tokens": list(tokens)}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def read_tokens(path: Path) -> list[str]:
    """Read what `write_tokens` wrote.

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
