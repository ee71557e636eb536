"""Decoding: from logits to the next token, row by row, whoever shares the batch."""

from server.decoding.randomness import UniformStream
from server.decoding.sampling import NO_TOKEN, choose_tokens

__all__ = ["NO_TOKEN", "UniformStream", "choose_tokens"]
