"""The opening brackets of s-expressions: each has a label, perhaps a word, and closing brackets behind them."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice

from elman_server.inference.trees.nodes import MAX_DEPTH, NO_WORD

# White space separates pieces; a no-break space may be part of a word.
WHITE_SPACE = " \t\r\n"
PIECE = re.compile(rf"[()]|[^(){WHITE_SPACE}]+")
_MAX_PIECES = 2 + MAX_DEPTH  # behind a bracket, up to the next one: a label, a word, and closing brackets

# A bracket in one number: its token, or NO_WORD, times 2 ** 11, and the number of closing brackets behind it.
Bracket = int
CLOSING_BITS = 11
CLOSING_MASK = (1 << CLOSING_BITS) - 1

_CACHED_BRACKETS, _CACHED_CHARACTERS = 65_536, 64


class BracketError(ValueError):
    """What follows an opening bracket is malformed."""


def read_bracket(text: str, token_of: Callable[[str], int]) -> Bracket:
    """Read what follows an opening bracket.

    Args:
        text: the text up to the next opening bracket.
        token_of: returns the token of a word.

    Raises:
        BracketError: it is not a label, at most one word, and closing brackets.
        EncodingError: the word is no token.
    """
    # Of a text of megabytes no more is read than a bracket can have.
    pieces = [found.group() for found in islice(PIECE.finditer(text), _MAX_PIECES + 1)]
    closing = pieces.count(")")
    leading = len(pieces) - closing  # a label, and perhaps a word
    if leading not in (1, 2) or ")" in pieces[:leading] or len(pieces) > _MAX_PIECES:
        raise BracketError(text)
    return ((token_of(pieces[1]) if leading == 2 else NO_WORD) << CLOSING_BITS) + closing


class BracketCache(dict[str, Bracket]):
    """`read_bracket` by the text behind the bracket. Most brackets recur, and looking one up calls no Python code.

    Args:
        token_of: returns the token of a word.
    """

    def __init__(self, token_of: Callable[[str], int]) -> None:
        super().__init__()
        self._token_of = token_of

    def __missing__(self, text: str) -> Bracket:
        bracket = read_bracket(text, self._token_of)
        if len(text) <= _CACHED_CHARACTERS:
            if len(self) >= _CACHED_BRACKETS:
                self.clear()
            self[text] = bracket
        return bracket
