"""Symbols: text whose pieces are parted by white space already, such as phonemes or tokenised words."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from elman_bundle.errors import EncodingError
from elman_bundle.vocabulary import UNKNOWN, TextDecoder, TokenIds, check_distinct, check_unknown_id, in_utf8


class SymbolVocabulary:
    """One piece between white space a token; tokens are joined with single spaces.

    Args:
        tokens: the pieces in the order of their ids.
        unknown_id: the id that stands for every piece that is not listed. Its own text is what it is decoded to, U+FFFD
            in vocabularies made by `from_texts`, and is read as unknown itself.
        lower_case: whether text is put into lower case before it is looked up.
    """

    characters_per_token = sys.maxsize  # white space may be of any length

    def __init__(self, tokens: Sequence[str], unknown_id: int | None = None, *, lower_case: bool = False) -> None:
        check_unknown_id(unknown_id, tokens)
        check_distinct(tokens, "symbol")
        for token in tokens:
            if token.split() != [token]:
                raise ValueError(f"a token of a symbol vocabulary has no white space in it, but there is {token!r}")
        self.tokens = tuple(tokens)
        self.unknown_id = unknown_id
        self.lower_case = lower_case
        self._ids = {symbol: token for token, symbol in enumerate(tokens)}

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        size: int,
        *,
        minimum_count: int = 1,
        lower_case: bool = False,
        reserved: Sequence[str] = (),
    ) -> SymbolVocabulary:
        """The commonest symbols of some texts, the commonest first, after the unknown token with id 0.

        Args:
            texts: where to count.
            size: how many tokens there are at most, the unknown and the reserved ones among them.
            minimum_count: how often a symbol must occur.
            lower_case: see the class.
            reserved: tokens that get the ids from 1 on, whatever occurs.
        """
        counts = Counter(symbol for text in texts for symbol in (text.lower() if lower_case else text).split())
        first = [UNKNOWN, *reserved]
        known = [symbol for symbol, count in counts.items() if count >= minimum_count and symbol not in first]
        known.sort(key=lambda symbol: (-counts[symbol], symbol))
        return cls([*first, *known][: max(size, len(first))], unknown_id=0, lower_case=lower_case)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> TokenIds:
        symbols = (text.lower() if self.lower_case else text).split()
        ids = [self._ids.get(symbol, self.unknown_id) for symbol in symbols]
        if self.unknown_id is None and None in ids:
            position, place = 0, ids.index(None)
            for symbol in text.split()[: place + 1]:
                position = text.index(symbol, position) + len(symbol)
            symbol = text.split()[place]
            raise EncodingError(f"the symbol {symbol!r} is not in the model's vocabulary", position - len(symbol))
        return np.array(ids, dtype=np.int64)

    def decoder(self) -> TextDecoder:
        return _SpacingDecoder(self.tokens)

    def token_bytes(self) -> list[bytes | None]:
        return [None if token == self.unknown_id else in_utf8(symbol) for token, symbol in enumerate(self.tokens)]

    def token_text(self, token: int) -> str:
        return self.tokens[token]


class _SpacingDecoder:
    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._begun = False

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        if not len(ids):
            return ""
        text = " ".join([self._tokens[token] for token in ids])
        before, self._begun = " " if self._begun else "", True
        return before + text
