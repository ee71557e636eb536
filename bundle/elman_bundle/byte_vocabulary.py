"""Bytes: one byte of UTF-8 a token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

import numpy as np

from elman_bundle.vocabulary import (
    NO_CONTROL,
    TextDecoder,
    TokenIds,
    check_no_control,
    normalize_newlines,
    select_control_ids,
)

_LONGEST_CHARACTER = 4  # bytes


class ByteVocabulary:
    """One byte of UTF-8 a token: nothing is unknown, and a character takes one to four tokens.

    Args:
        control_ids: the control tokens; a text that holds such a byte is refused.
        universal_newlines: whether CR LF and CR are read as newlines.
    """

    size = 256
    unknown_id = None
    characters_per_token = 1
    tokens = None  # There is nothing to list.

    def __init__(self, *, control_ids: Iterable[int] = NO_CONTROL, universal_newlines: bool = False) -> None:
        self.control_ids = select_control_ids(control_ids, self)
        self.universal_newlines = universal_newlines

    def with_control(self, control_ids: Iterable[int]) -> ByteVocabulary:
        """Return the same vocabulary with other control tokens."""
        return ByteVocabulary(control_ids=control_ids, universal_newlines=self.universal_newlines)

    def encode(self, text: str) -> TokenIds:
        if "\r" in text:
            text = normalize_newlines(text, self)
        ids = np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8).astype(np.int64)
        check_no_control(ids, text, self)
        return ids

    def decoder(self, before: Sequence[int] = ()) -> TextDecoder:
        decoder = _ByteDecoder(self.control_ids)
        decoder.decode([token for token in before if token not in self.control_ids][-_LONGEST_CHARACTER:])
        return decoder

    def token_bytes(self) -> list[bytes | None]:
        return [None if token in self.control_ids else bytes([token]) for token in range(self.size)]

    def token_text(self, token: int) -> str:
        return bytes([token]).decode(errors="replace")


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Return a decoder of bytes that come in pieces, with U+FFFD in place of what is not UTF-8."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


class _ByteDecoder:
    def __init__(self, control_ids: frozenset[int]) -> None:
        self._control_ids = control_ids
        self._decoder = utf8_decoder()

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        # Not bytes(ids), which would read the memory of an array.
        listed = [token for token in ids if token not in self._control_ids] if self._control_ids else list(ids)
        return self._decoder.decode(bytes(listed), final)
