"""Choosing the next token of every row of a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_TOKEN = -1


def choose_tokens(
    logits: NDArray[np.floating], temperatures: NDArray[np.float64], uniforms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Choose one token a row.

    At temperature 0 it is the most probable one, of equals the one with the lowest id. Else the inverse of the
    cumulative distribution of softmax(logits / temperature) at the row's uniform number. Every row is computed by
    itself, so that its token does not depend on the rows beside it.

    Args:
        logits: [B, V]; -inf forbids a token.
        temperatures: [B], finite and not negative.
        uniforms: [B], in [0, 1).

    Returns:
        Ids, int64 [B]; NO_TOKEN where a row's logits hold NaN or +inf, or forbid every token.
    """
    largest = logits.max(axis=1)
    usable = np.isfinite(largest)
    tokens: NDArray[np.int64] = np.where(usable, logits.argmax(axis=1), NO_TOKEN)
    drawn = np.flatnonzero(usable & (temperatures > 0))
    if drawn.size:
        distances = logits[drawn].astype(np.float64) - largest[drawn, None].astype(np.float64)
        # A temperature near 0 drives all but the largest to -inf, whose weight is 0: as it should be.
        with np.errstate(over="ignore", under="ignore"):
            weights = np.exp(distances / temperatures[drawn, None])
        cumulative = weights.cumsum(axis=1)
        thresholds = uniforms[drawn] * cumulative[:, -1]
        # The first token whose cumulative weight exceeds the threshold; one of weight 0 never is.
        tokens[drawn] = (cumulative <= thresholds[:, None]).sum(axis=1)
    return tokens
