"""The interface of vocabularies of text: text to token ids and back.

Decoding is incremental and never returns a part of a character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from elman_bundle.bundle_errors import EncodingError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# The spelling of control tokens in our own vocabularies: ASCII's "start of text", "end of text" and, for inner nodes of
# trees, "null".
BEGIN, END, INNER = "\x02", "\x03", "\x00"

TokenIds = NDArray[np.int64]
NO_CONTROL: frozenset[int] = frozenset()


class TextDecoder(Protocol):
    """Decodes the ids of one sequence piece by piece."""

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        """Decode the next ids.

        Args:
            ids: the ids after all that were passed before.
            final: whether no ids will follow. An incomplete character, which is otherwise held back, is then returned
                as U+FFFD.

        Returns:
            The text that is complete by now and has not been returned before.
        """
        ...


class TextVocabulary(Protocol):
    """A mapping from text to token ids and back."""

    @property
    def size(self) -> int:
        """The number of tokens; ids are 0 to size - 1."""
        ...

    @property
    def unknown_id(self) -> int | None:
        """The id of the token that stands for everything outside the vocabulary; None if there is no such token."""
        ...

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of the tokens that mark where a sequence begins or ends, or an inner node. No text is read as one of
        them, and they have no text."""
        ...

    @property
    def universal_newlines(self) -> bool:
        """Whether CR LF and CR in a text are read as a newline, as in the texts that the model was trained on."""
        ...

    @property
    def characters_per_token(self) -> int:
        """The largest number of characters of a text that one token can stand for, at least 1, after
        `normalize_newlines`."""
        ...

    def encode(self, text: str) -> TokenIds:
        """The ids of a text, int64 [tokens].

        Raises:
            EncodingError: the text holds something outside a vocabulary that has no unknown token.
        """
        ...

    def decoder(self, before: Sequence[int] = ()) -> TextDecoder:
        """A new decoder for one sequence.

        Args:
            before: the ids that precede those to be decoded; the last 64 are enough. Their text is not returned, but a
                character that they begin is.
        """
        ...

    def token_bytes(self) -> list[bytes | None]:
        """The UTF-8 spelling of each token, by id; None for a token that is never text."""
        ...

    def token_text(self, token: int) -> str:
        """One token for people; an incomplete character is shown as U+FFFD."""
        ...


class JoiningDecoder:
    """Decodes tokens that are complete characters each.

    Args:
        texts: the texts of the tokens, in the order of their ids.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        return "".join([self._texts[token] for token in ids])


def select_control_ids(ids: Iterable[int], vocabulary: TextVocabulary) -> frozenset[int]:
    """Return the tokens of some that are control tokens.

    A token that is white space, such as the newline that ends every line of a corpus, stays a part of texts.

    Args:
        ids: the tokens with which sequences begin or end, or which inner nodes read.
        vocabulary: their vocabulary.
    """
    return frozenset(token for token in ids if not vocabulary.token_text(token).isspace())


def normalize_newlines(text: str, vocabulary: TextVocabulary) -> str:
    """Return a text with CR LF and CR as newlines, if the vocabulary reads them so."""
    if vocabulary.universal_newlines and "\r" in text:
        return text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def check_no_control(ids: TokenIds, text: str, vocabulary: TextVocabulary) -> None:
    """Check the ids of a text, in a vocabulary without an unknown token.

    Raises:
        EncodingError: one is that of a control token.
    """
    if not vocabulary.control_ids:
        return
    found = np.isin(ids, list(vocabulary.control_ids))
    if found.any():
        position = len(vocabulary.decoder().decode(ids[: int(np.argmax(found))].tolist()))
        raise EncodingError(
            f"the character {text[position]!r} is a control token of the model, which no text holds", position
        )


def check_tokens(tokens: Sequence[str], kind: str) -> None:
    """Check that no token is listed twice, and that each can be written.

    Raises:
        ValueError: one is, or cannot.
    """
    for token in tokens:
        if not token.isascii() and any("\ud800" <= character <= "\udfff" for character in token):
            raise ValueError(f"the {kind} {token!r} has half of a surrogate pair in it, which is no character")
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise ValueError(f"the {kind} {twice!r} is listed twice")


def check_unknown_id(unknown_id: int | None, tokens: Sequence[str]) -> None:
    """Check that the unknown token is one of the tokens.

    Raises:
        ValueError: it is not.
    """
    if unknown_id is not None and not 0 <= unknown_id < len(tokens):
        raise ValueError(f"the unknown token's id {unknown_id} is outside 0 to {len(tokens) - 1}")
