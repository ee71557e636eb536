"""Upper bounds of what one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

_INPUTS_OF_FULL_LENGTH = 16


@dataclass(frozen=True)
class Limits:
    """Upper bounds of what one request may ask for.

    Attributes:
        max_tokens: generated tokens.
        input_tokens: tokens of one prompt, input or piece.
        message_bytes: bytes of one request or response message.
    """

    max_tokens: int
    input_tokens: int
    message_bytes: int

    @property
    def total_tokens(self) -> int:
        """Tokens of all inputs of a request together."""
        return _INPUTS_OF_FULL_LENGTH * self.input_tokens
