"""Bytes: one byte of UTF-8 a token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import numpy as np

from elman_bundle.vocabulary import TextDecoder, TokenIds


class ByteVocabulary:
    """One byte of UTF-8 a token: nothing is unknown, and a character takes one to four tokens."""

    size = 256
    unknown_id = None
    characters_per_token = 1
    tokens = None  # There is nothing to list.

    def encode(self, text: str) -> TokenIds:
        return np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8).astype(np.int64)

    def decoder(self) -> TextDecoder:
        return _ByteDecoder()

    def token_bytes(self) -> list[bytes | None]:
        return [bytes([token]) for token in range(self.size)]

    def token_text(self, token: int) -> str:
        return bytes([token]).decode(errors="replace")


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Return a decoder of bytes that come in pieces, with U+FFFD in place of what is not UTF-8."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


class _ByteDecoder:
    def __init__(self) -> None:
        self._decoder = utf8_decoder()

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        # Not bytes(ids), which would read the memory of an array.
        return self._decoder.decode(bytes(list(ids)), final)
