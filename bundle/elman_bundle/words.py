"""Words: text cut into pieces that are the text again when they are joined.

A piece is a run of letters, one digit, or a run of one other character, each with a single space before it if there is
one, or a run of white space: "x = __f__(12)\\n    y" is cut into `x`, ` =`, ` __`, `f`, `__`, `(`, `1`, `2`, `)`,
`\\n    ` and `y`. No piece is longer than 32 characters; a longer run is cut there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from elman_bundle.errors import EncodingError
from elman_bundle.vocabulary import (
    UNKNOWN,
    JoiningDecoder,
    TextDecoder,
    TokenIds,
    check_distinct,
    check_unknown_id,
    in_utf8,
)

_LONGEST = 32
# What \w has beside digits and the underscore are letters, as str.isalpha has them, and numbers such as ½.
_PIECE = re.compile(rf" ?(?:[^\W\d_]{{1,{_LONGEST - 1}}}|\d|([^\w\s]|_)\1{{0,{_LONGEST - 2}}})|\s{{1,{_LONGEST}}}")


class WordVocabulary:
    """One piece of text a token: most of them are words, with the space before them.

    Args:
        tokens: the pieces in the order of their ids.
        unknown_id: the id that stands for every piece that is not listed. Its own text is what it is decoded to, U+FFFD
            in vocabularies made by `from_texts`; where that text is a piece itself, the piece is read as unknown.
        lower_case: whether text is put into lower case before it is looked up. What is generated is then in lower
            case too.
    """

    characters_per_token = _LONGEST

    def __init__(self, tokens: Sequence[str], unknown_id: int | None = None, *, lower_case: bool = False) -> None:
        check_unknown_id(unknown_id, tokens)
        check_distinct(tokens, "word")
        for token, piece in enumerate(tokens):
            if token != unknown_id and _PIECE.fullmatch(piece) is None:
                raise ValueError(
                    f"a token of a word vocabulary is one word or a run of one other character, of {_LONGEST - 1} "
                    "characters or fewer, or one digit, each with one space before it or none, or white space, of at "
                    f"most {_LONGEST} characters, but there is {piece!r}"
                )
        self.tokens = tuple(tokens)
        self.unknown_id = unknown_id
        self.lower_case = lower_case
        self._ids = {piece: token for token, piece in enumerate(tokens)}

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], size: int, *, minimum_count: int = 1, lower_case: bool = False
    ) -> WordVocabulary:
        """The commonest pieces of some texts, the commonest first, after the unknown token with id 0.

        Args:
            texts: where to count; no piece goes from one into the next.
            size: how many tokens there are at most, the unknown one among them.
            minimum_count: how often a piece must occur.
            lower_case: see the class.
        """
        counts = Counter(piece for text in texts for piece in _pieces(text, lower_case))
        known = [piece for piece, count in counts.items() if count >= minimum_count and UNKNOWN not in piece]
        known.sort(key=lambda piece: (-counts[piece], piece))
        return cls([UNKNOWN, *known[: size - 1]], unknown_id=0, lower_case=lower_case)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> TokenIds:
        ids = [self._ids.get(piece, self.unknown_id) for piece in _pieces(text, self.lower_case)]
        if self.unknown_id is None and None in ids:
            raise self._complaint(text, ids.index(None))
        return np.array(ids, dtype=np.int64)

    def _complaint(self, text: str, index: int) -> EncodingError:
        found = next(islice(_PIECE.finditer(text), index, None))
        word = found.group().lstrip() or found.group()
        return EncodingError(f"the word {word!r} is not in the model's vocabulary", found.end() - len(word))

    def decoder(self) -> TextDecoder:
        return JoiningDecoder(self.tokens)

    def token_bytes(self) -> list[bytes | None]:
        return [None if token == self.unknown_id else in_utf8(piece) for token, piece in enumerate(self.tokens)]

    def token_text(self, token: int) -> str:
        return self.tokens[token]


def _pieces(text: str, lower_case: bool) -> Iterator[str]:
    if lower_case:
        # The one character that would become two, so that positions in the text stay what they are.
        text = text.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()
    return (found.group() for found in _PIECE.finditer(text))
