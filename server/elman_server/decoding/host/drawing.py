"""Drawing tokens on the host, in float64.

From scores to a token, in the order of the draw inside the graph (`in_graph.filters`):

1. temperature: divides the scores;
2. top-k: keeps the k most probable tokens, of equals the lowest ids;
3. top-p of what is left (Holtzman et al. 2020): keeps the tokens whose more probable ones together are below p;
4. min-p of what is left (Nguyen et al. 2024): keeps the tokens whose probability is at least min-p times the largest;
5. the draw, by inverting the cumulative distribution at the uniform number of the row: in the order of the ids or,
   where 2 to 4 apply, in descending order of probability.

No row's result depends on the other rows. Axes: R rows, V tokens, C candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# How a row draws.
SAMPLING = np.dtype(
    [
        ("temperature", np.float64),
        ("top_k", np.int64),  # V for a row without the filter
        ("top_p", np.float64),  # 1 for a row without the filter
        ("min_p", np.float64),  # 0 for a row without the filter
    ]
)

# Divided by this, a finite score is as good as 0; divided by infinity, a score of -inf would become NaN.
_MAX_TEMPERATURE = 1e300

# Up to this vocabulary size all tokens are sorted; above it that costs much more than selecting candidates.
_NARROW_VOCABULARY = 1024
_CANDIDATES = 256


def draw(
    scores: NDArray[np.float32], largest: NDArray[np.float32], sampling: NDArray[Any], uniforms: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Draw a token for each row.

    Args:
        scores: float32 [R, V], finite or -inf.
        largest: float32 [R], the largest score of each row, finite.
        sampling: SAMPLING [R], with temperatures above 0.
        uniforms: float32 [R], at least 0 and less than 1.

    Returns:
        The tokens, int64 [R].
    """
    weights = scores.astype(np.float64)
    weights -= largest[:, None]
    weights /= np.minimum(sampling["temperature"], _MAX_TEMPERATURE)[:, None]
    np.exp(weights, out=weights)  # 1 for the most probable token
    numbers = uniforms.astype(np.float64)
    tokens = np.empty(len(scores), np.int64)
    filtered = (sampling["top_k"] < scores.shape[1]) | (sampling["top_p"] < 1) | (sampling["min_p"] > 0)
    if (at := select_rows(filtered)) is not None:
        tokens[at] = _draw_by_rank(scores[at], weights[at], sampling[at], numbers[at])
    if (at := select_rows(~filtered)) is not None:
        tokens[at] = _draw_by_id(weights[at], numbers[at])
    return tokens


def select_rows(flags: NDArray[np.bool_]) -> NDArray[np.int64] | slice | None:
    """Return an index of the rows whose flag is set: None if there is none, and a slice, which copies nothing, if it is
    set for all."""
    count = np.count_nonzero(flags)
    if count == 0:
        return None
    return slice(None) if count == len(flags) else np.flatnonzero(flags)


def _draw_by_id(weights: NDArray[np.float64], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    cumulative = weights.cumsum(axis=1)
    return _first_above(cumulative, uniforms * cumulative[:, -1])


def _draw_by_rank(
    scores: NDArray[np.float32],
    weights: NDArray[np.float64],
    sampling: NDArray[Any],
    uniforms: NDArray[np.float64],
    candidate_count: int | None = None,
) -> NDArray[np.int64]:
    """Draw a token for each row among its most probable ones, int64 [R]. The number of candidates does not change the
    result: rows for which it is too small are drawn again among all tokens."""
    vocabulary_size, top_k = scores.shape[1], sampling["top_k"]
    limited = top_k < vocabulary_size
    if candidate_count is None:
        most = int(top_k[limited].max(initial=_CANDIDATES))
        candidate_count = vocabulary_size if vocabulary_size <= _NARROW_VOCABULARY else most
    ids = most_probable(scores, candidate_count)
    index = np.arange(len(scores))
    ranked = weights[index[:, None], ids]
    # Summed in descending order of probability, so that a sum does not depend on the number of candidates.
    cumulative = ranked.cumsum(axis=1)
    last = np.minimum(top_k, candidate_count) - 1
    enough = sampling["top_p"] * np.where(limited, cumulative[index, last], weights.sum(axis=1))
    within_top_p = 1 + np.count_nonzero(cumulative[:, :-1] < enough[:, None], axis=1)
    within_min_p = np.count_nonzero(ranked >= sampling["min_p"][:, None], axis=1)
    kept = np.minimum(np.minimum(top_k, within_top_p), within_min_p)
    columns = _first_above(cumulative, uniforms * cumulative[index, kept - 1])
    tokens: NDArray[np.int64] = ids[index, columns]
    if candidate_count < vocabulary_size:
        at = np.flatnonzero(~limited & (cumulative[:, -1] < enough) & (ranked[:, -1] >= sampling["min_p"]))
        if len(at):
            tokens[at] = _draw_by_rank(scores[at], weights[at], sampling[at], uniforms[at], vocabulary_size)
    return tokens


def most_probable(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the ids of the largest scores of each row, in descending order, of equals the lower id first.

    Args:
        scores: float32 [R, V].
        count: number of ids, at most V.

    Returns:
        int64 [R, count].
    """
    # Integers that sort by descending score, then by id. The bits of a float sort like the integer that they encode,
    # those of negative ones in reverse; the subtraction from 0 makes -0 equal to 0.
    bits = (np.float32(0) - scores).view(np.int32)
    bits ^= (bits >> 31) & 0x7FFF_FFFF
    keys = (bits.astype(np.int64) << 32) | np.arange(scores.shape[1])
    if count < scores.shape[1]:
        keys = np.partition(keys, count - 1, axis=1)[:, :count]
    keys.sort(axis=1)
    return keys & 0xFFFF_FFFF


def _first_above(cumulative: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the first column of each row [R, N] above its threshold [R], which is at least 0: never a column without
    weight."""
    columns: NDArray[np.int64] = (cumulative > thresholds[:, None]).argmax(axis=1)
    return columns
