"""Words: text cut into pieces that give the text again when they are joined.

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

from elman_bundle.bundle_errors import EncodingError
from elman_bundle.vocabulary import (
    NO_CONTROL,
    UNKNOWN,
    JoiningDecoder,
    TextDecoder,
    TokenIds,
    check_tokens,
    check_unknown_id,
    normalize_newlines,
    select_control_ids,
)

_LONGEST = 32
# Without digits and the underscore, \w is letters, as in str.isalpha, and numbers such as ½.
_PIECE = re.compile(rf" ?(?:[^\W\d_]{{1,{_LONGEST - 1}}}|\d|([^\w\s]|_)\1{{0,{_LONGEST - 2}}})|\s{{1,{_LONGEST}}}")


class WordVocabulary:
    """One piece of text a token; most pieces are words with the space before them.

    Args:
        tokens: the pieces in the order of their ids.
        unknown_id: the id that stands for every piece that is not listed. It decodes to its own text, U+FFFD in
            vocabularies made by `from_texts`; if that text is a piece, it is read as unknown, too.
        lower_case: whether text is converted to lower case before it is encoded. Generated text is then in lower case,
            too.
        control_ids: the control tokens; their text is read as unknown.

    Raises:
        ValueError: a token is not a piece or is listed twice, or the unknown id is not that of a token.
    """

    characters_per_token = _LONGEST

    def __init__(
        self,
        tokens: Sequence[str],
        unknown_id: int | None = None,
        *,
        lower_case: bool = False,
        control_ids: Iterable[int] = NO_CONTROL,
    ) -> None:
        check_unknown_id(unknown_id, tokens)
        check_tokens(tokens, "word")
        for token, piece in enumerate(tokens):
            if token != unknown_id and _PIECE.fullmatch(piece) is None:
                raise ValueError(
                    f"got the token {piece!r}; a token of a word vocabulary is one word or a run of one other "
                    f"character, of at most {_LONGEST - 1} characters, or one digit, each with or without one space "
                    f"before it, or white space of at most {_LONGEST} characters"
                )
        self.tokens = tuple(tokens)
        self.unknown_id = unknown_id
        self.lower_case = lower_case
        self.control_ids = select_control_ids(control_ids, self)
        self.universal_newlines = not any("\r" in piece for piece in tokens)
        self._ids = {piece: token for token, piece in enumerate(tokens) if token not in self.control_ids}
        self._texts = ["" if token in self.control_ids else piece for token, piece in enumerate(tokens)]

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], size: int, *, minimum_count: int = 1, lower_case: bool = False
    ) -> WordVocabulary:
        """Make a vocabulary of the most frequent pieces, sorted by frequency, after the unknown token with id 0.

        Args:
            texts: the texts to count in; no piece spans two of them.
            size: the largest number of tokens, with the unknown one.
            minimum_count: the smallest number of occurrences of a piece.
            lower_case: as for the class.
        """
        counts = Counter(piece for text in texts for piece in _pieces(text, lower_case))
        known = [piece for piece, count in counts.items() if count >= minimum_count and UNKNOWN not in piece]
        known.sort(key=lambda piece: (-counts[piece], piece))
        return cls([UNKNOWN, *known[: size - 1]], unknown_id=0, lower_case=lower_case)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> TokenIds:
        if "\r" in text:
            text = normalize_newlines(text, self)
        ids = [self._ids.get(piece, self.unknown_id) for piece in _pieces(text, self.lower_case)]
        if self.unknown_id is None and None in ids:
            raise self._encoding_error(text, ids.index(None))
        return np.array(ids, dtype=np.int64)

    def _encoding_error(self, text: str, index: int) -> EncodingError:
        found = next(islice(_PIECE.finditer(text), index, None))
        word = found.group().lstrip() or found.group()
        return EncodingError(f"the word {word!r} is not in the model's vocabulary", found.end() - len(word))

    def decoder(self, before: Sequence[int] = ()) -> TextDecoder:
        return JoiningDecoder(self._texts)

    def token_bytes(self) -> list[bytes | None]:
        not_text = {self.unknown_id, *self.control_ids}
        return [None if token in not_text else piece.encode() for token, piece in enumerate(self.tokens)]

    def token_text(self, token: int) -> str:
        return self.tokens[token]


def _pieces(text: str, lower_case: bool) -> Iterator[str]:
    if lower_case:
        # The only character whose lower case has two characters; replaced so that positions in the text stay the same.
        text = text.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()
    return (found.group() for found in _PIECE.finditer(text))
