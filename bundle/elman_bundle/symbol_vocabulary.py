"""Symbols: text whose pieces are separated by white space already, such as phonemes or tokenized words."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from elman_bundle.bundle_errors import EncodingError
from elman_bundle.vocabulary import UNKNOWN, TextDecoder, TokenIds, check_tokens, check_unknown_id


class SymbolVocabulary:
    """One piece between white space a token; tokens are joined with single spaces.

    Args:
        tokens: the pieces in the order of their ids.
        unknown_id: the id that stands for every piece that is not listed. It decodes to its own text, U+FFFD in
            vocabularies made by `from_texts`, and that text is read as unknown, too.
        lower_case: whether text is converted to lower case before it is encoded.

    Raises:
        ValueError: a token holds white space or is listed twice, or the unknown id is not that of a token.
    """

    characters_per_token = sys.maxsize  # White space may have any length.

    def __init__(self, tokens: Sequence[str], unknown_id: int | None = None, *, lower_case: bool = False) -> None:
        check_unknown_id(unknown_id, tokens)
        check_tokens(tokens, "symbol")
        for token in tokens:
            if token.split() != [token]:
                raise ValueError(f"got the token {token!r}; a token of a symbol vocabulary has no white space in it")
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
        """Make a vocabulary of the most frequent symbols, sorted by frequency, after the unknown token with id 0.

        Args:
            texts: the texts to count in.
            size: the largest number of tokens, with the unknown and the reserved ones.
            minimum_count: the smallest number of occurrences of a symbol.
            lower_case: as for the class.
            reserved: tokens that have the ids from 1 on, whether they occur or not.
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
            position, index = 0, ids.index(None)
            for symbol in text.split()[: index + 1]:
                position = text.index(symbol, position) + len(symbol)
            symbol = text.split()[index]
            raise EncodingError(f"the symbol {symbol!r} is not in the model's vocabulary", position - len(symbol))
        return np.array(ids, dtype=np.int64)

    def decoder(self) -> TextDecoder:
        return _SpacingDecoder(self.tokens)

    def token_bytes(self) -> list[bytes | None]:
        return [None if token == self.unknown_id else symbol.encode() for token, symbol in enumerate(self.tokens)]

    def token_text(self, token: int) -> str:
        return self.tokens[token]


class _SpacingDecoder:
    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._started = False

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        if not len(ids):
            return ""
        text = " ".join([self._tokens[token] for token in ids])
        before, self._started = " " if self._started else "", True
        return before + text
