"""Characters: one Unicode code point a token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

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

_NO_CHARACTER = 0xFFFF_FFFF  # no code point


class CharacterVocabulary:
    """One Unicode code point a token.

    Args:
        tokens: the characters in the order of their ids.
        unknown_id: the id that stands for every character that is not listed. It decodes to its own character, U+FFFD
            in vocabularies made by `from_text`, and that character is read as unknown, too.
        control_ids: the control tokens; their characters are read as unknown.

    Raises:
        ValueError: a token is not one character or is listed twice, or the unknown id is not that of a token.
    """

    def __init__(
        self, tokens: Sequence[str], unknown_id: int | None = None, *, control_ids: Iterable[int] = NO_CONTROL
    ) -> None:
        wrong = next((token for token in tokens if len(token) != 1), None)
        if wrong is not None:
            raise ValueError(f"got the token {wrong!r}; a token of a character vocabulary is one character")
        check_tokens(tokens, "character")
        check_unknown_id(unknown_id, tokens)
        self.tokens = tuple(tokens)
        self.unknown_id = unknown_id
        self.characters_per_token = 1
        self.control_ids = select_control_ids(control_ids, self)
        self.universal_newlines = "\r" not in tokens
        self._texts = ["" if token in self.control_ids else text for token, text in enumerate(tokens)]
        code_points = np.array([ord(token) for token in tokens], dtype=np.uint32)
        code_points[list(self.control_ids)] = _NO_CHARACTER
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
        if "\r" in text:
            text = normalize_newlines(text, self)
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

    def decoder(self, before: Sequence[int] = ()) -> TextDecoder:
        return JoiningDecoder(self._texts)

    def token_bytes(self) -> list[bytes | None]:
        not_text = {self.unknown_id, *self.control_ids}
        return [None if token in not_text else text.encode() for token, text in enumerate(self.tokens)]

    def token_text(self, token: int) -> str:
        return self.tokens[token]
