"""A vocabulary as llguidance reads it: always with an end token, and with masks of one bit per token.

Axes: R matchers of a call, V tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from elman_server.decoding.constraints.json_numbers import NUMBER_BYTES
from elman_server.decoding.constraints.sandbox import make_tokenizer

_NUMBER_STARTS = {bytes([byte]) for byte in NUMBER_BYTES}
_MAX_TOKEN_BYTES = 1024  # llguidance takes no longer tokens
_NOT_TEXT = 0xFF  # occurs in no UTF-8; llguidance marks tokens that are not text with it
_THREADS = 1  # a mask takes a few microseconds at most; the other cores belong to the model


class MatcherVocabulary:
    """A vocabulary for matchers.

    Args:
        token_bytes: the UTF-8 of each of the V tokens, or a part of it; None for a token that is never text.
        end_token: the token that ends an output, which is not text whatever its bytes; None if the model has none.

    Attributes:
        size: V.
        end_token: the end token of the model, if any.
        spelled: the bytes of each of the V tokens; empty for one that is not text.
        tokenizer: the vocabulary for llguidance.
        is_text: whether each of the V tokens is text.
        text_bits: the same as a mask, int32 [V / 32, rounded up].
        number_bits: whether each token can continue a number in JSON, as a mask.
    """

    def __init__(self, token_bytes: Sequence[bytes | None], end_token: int | None) -> None:
        self.size = len(token_bytes)
        self.end_token = end_token
        tokens = [_text(token) for token in token_bytes]
        if end_token is None:
            tokens.append(b"")  # Its id lies beyond the vocabulary and is cut off from every mask.
        else:
            tokens[end_token] = b""
        self.tokenizer = make_tokenizer(tokens, self.size if end_token is None else end_token)
        self.spelled = tokens[: self.size]
        self.is_text = [bool(token) for token in self.spelled]
        self.text_bits = _pack(self.is_text, len(tokens))
        self.number_bits = _pack([token[:1] in _NUMBER_STARTS for token in self.spelled], len(tokens))
        self._executor = LLExecutor(_THREADS)
        self._apart = threading.local()

    def masks(self, parsers: Sequence[LLMatcher]) -> NDArray[np.int32]:
        """Compute which tokens may follow. Other threads run meanwhile.

        Returns:
            int32 [R, V / 32, rounded up], a bit per token. The mask of a parser that fails has no meaning.
        """
        bits = allocate_token_bitmask(len(parsers), self.size + (self.end_token is None))
        fill_next_token_bitmask_par(self._executor, [(parser, row) for row, parser in enumerate(parsers)], bits)
        return bits

    def consume(self, parser: LLMatcher, token: int) -> bool:
        """Add a token to the output of a parser; returns whether it is allowed. Other threads run meanwhile.

        llguidance lets them run only if it has two parsers, so there is another one, whose output has failed already.
        """
        if not hasattr(self._apart, "executor"):
            self._apart.executor, self._apart.failed = LLExecutor(1), LLMatcher(self.tokenizer, "", log_level=0)
        return bool(self._apart.executor.consume_token_par([(parser, token), (self._apart.failed, token)])[0])

    def unpack(self, bits: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return masks as bool [R, V]."""
        return np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=self.size).view(np.bool_)


def _text(token: bytes | None) -> bytes:
    """Return the bytes of a token if llguidance can treat it as text; none otherwise."""
    return b"" if token is None or _NOT_TEXT in token or len(token) > _MAX_TOKEN_BYTES else token


def _pack(flags: Sequence[bool], size: int) -> NDArray[np.int32]:
    """Return flags as a mask of `size` tokens."""
    padded = np.zeros(-(-size // 32) * 32, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.int32)
