"""Symbols: text whose pieces are separated by white space already, such as phonemes or tokenized words."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from elman_bundle.bundle_errors import EncodingError
from elman_bundle.vocabulary import (
    NO_CONTROL,
    UNKNOWN,
    TextDecoder,
    TokenIds,
    check_tokens,
    check_unknown_id,
    select_control_ids,
)


class SymbolVocabulary:
    """One piece between white space a token; tokens are joined with single spaces.

    Args:
        tokens: the pieces in the order of their ids.
        unknown_id: the id that stands for every piece that is not listed. It decodes to its own text, U+FFFD in
            vocabularies made by `from_texts`, and that text is read as unknown, too.
        lower_case: whether text is converted to lower case before it is encoded.
        control_ids: the control tokens; their text is read as unknown.

    Raises:
        ValueError: a token holds white space or is listed twice, or the unknown id is not that of a token.
    """

    characters_per_token = sys.maxsize  # White space may have any length.
    universal_newlines = True  # Every line end is white space.

    def __init__(
        self,
        tokens: Sequence[str],
        unknown_id: int | None = None,
        *,
        lower_case: bool = False,
        control_ids: Iterable[int] = NO_CONTROL,
    ) -> None:
        check_unknown_id(unknown_id, tokens)
        check_tokens(tokens, "symbol")
        for token in tokens:
            if token.split() != [token]:
                raise ValueError(f"got the token {token!r}; a token of a symbol vocabulary has no white space in it")
        self.tokens = tuple(tokens)
        self.unknown_id = unknown_id
        self.lower_case = lower_case
        self.control_ids = select_control_ids(control_ids, self)
        self._ids = {symbol: token for token, symbol in enumerate(tokens) if token not in self.control_ids}

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
            reserved: the control tokens, which have the ids from 1 on.
        """
        counts = Counter(symbol for text in texts for symbol in (text.lower() if lower_case else text).split())
        first = [UNKNOWN, *reserved]
        known = [symbol for symbol, count in counts.items() if count >= minimum_count and symbol not in first]
        known.sort(key=lambda symbol: (-counts[symbol], symbol))
        tokens = [*first, *known][: max(size, len(first))]
        return cls(tokens, unknown_id=0, lower_case=lower_case, control_ids=range(1, len(first)))

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

    def decoder(self, before: Sequence[int] = ()) -> TextDecoder:
        return _SpacingDecoder(self.tokens, self.control_ids, before)

    def token_bytes(self) -> list[bytes | None]:
        not_text = {self.unknown_id, *self.control_ids}
        return [None if token in not_text else symbol.encode() for token, symbol in enumerate(self.tokens)]

    def token_text(self, token: int) -> str:
        return self.tokens[token]


class _SpacingDecoder:
    def __init__(self, tokens: Sequence[str], control_ids: frozenset[int], before: Sequence[int]) -> None:
        self._tokens = tokens
        self._control_ids = control_ids
        self._started = any(token not in control_ids for token in before)

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        symbols = [self._tokens[token] for token in ids if token not in self._control_ids]
        if not symbols:
            return ""
        before, self._started = " " if self._started else "", True
        return before + " ".join(symbols)
