"""The interface of vocabularies of text: text to token ids and back.

Decoding is incremental and never returns a part of a character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# Tokens of our own vocabularies that no text contains: ASCII's "start of text", "end of text" and, for inner nodes of
# trees, "null".
BEGIN, END, INNER = "\x02", "\x03", "\x00"

TokenIds = NDArray[np.int64]


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
    def characters_per_token(self) -> int:
        """The largest number of characters of a text that one token can stand for, at least 1."""
        ...

    def encode(self, text: str) -> TokenIds:
        """The ids of a text, int64 [tokens].

        Raises:
            EncodingError: the text holds something outside a vocabulary that has no unknown token.
        """
        ...

    def decoder(self) -> TextDecoder:
        """A new decoder for one sequence."""
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
        tokens: the texts of the tokens, in the order of their ids.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        return "".join([self._tokens[token] for token in ids])


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
