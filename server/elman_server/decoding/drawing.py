"""Drawing tokens on the host, in double precision, row by row, whoever is in the call.

From scores to a token, in this order, which is that of the graph's own choice (`choosing`):

1. temperature, which divides the scores;
2. top-k: so many of the most probable tokens, of equals the lowest ids;
3. top-p of what is left (Holtzman et al. 2020): the tokens whose more probable ones together fall short of it;
4. min-p of what is left (Nguyen et al. 2024): the tokens whose probability is at least min-p times the largest;
5. the draw, by the inverse of the cumulative distribution at the row's uniform number: in the order of the ids, or,
   where 2 to 4 ask for a part, from the most probable on.

Axes: R rows of a call, V tokens, N candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# How a row draws.
SAMPLING = np.dtype(
    [
        ("temperature", np.float64),
        ("top_k", np.int64),  # V for a row that does not ask
        ("top_p", np.float64),  # 1 for a row that does not ask
        ("min_p", np.float64),  # 0 for a row that does not ask
    ]
)

_HOTTEST = 1e300  # Divided by it, a finite score is as good as 0; by infinity, a forbidden one were no number.

# Above so many tokens, sorting all of them costs much more than finding the most probable.
_NARROW = 1024
_CANDIDATES = 256


def draw(
    scores: NDArray[np.float32], largest: NDArray[np.float32], sampling: NDArray[Any], uniforms: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Tokens, int64 [R].

    Args:
        scores: float32 [R, V], finite or -inf.
        largest: float32 [R], the largest score of each row, finite.
        sampling: SAMPLING [R], of temperatures above 0.
        uniforms: float32 [R], at least 0 and less than 1.
    """
    weights = scores.astype(np.float64)
    weights -= largest[:, None]
    weights /= np.minimum(sampling["temperature"], _HOTTEST)[:, None]
    np.exp(weights, out=weights)  # 1 for the most probable
    numbers = uniforms.astype(np.float64)
    tokens = np.empty(len(scores), np.int64)
    asks = (sampling["top_k"] < scores.shape[1]) | (sampling["top_p"] < 1) | (sampling["min_p"] > 0)
    if (at := pick_rows(asks)) is not None:
        tokens[at] = _draw_by_rank(scores[at], weights[at], sampling[at], numbers[at])
    if (at := pick_rows(~asks)) is not None:
        tokens[at] = _draw_by_id(weights[at], numbers[at])
    return tokens


def pick_rows(flags: NDArray[np.bool_]) -> NDArray[np.int64] | slice | None:
    """What picks the rows that have a flag: None where none has it; where all have it, nothing need be copied."""
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
    """Tokens [R] among each row's most probable ones. How many candidates are looked at makes no difference."""
    vocabulary_size, top_k = scores.shape[1], sampling["top_k"]
    limited = top_k < vocabulary_size
    if candidate_count is None:
        most = int(top_k[limited].max(initial=_CANDIDATES))
        candidate_count = vocabulary_size if vocabulary_size <= _NARROW else most
    ids = most_probable(scores, candidate_count)
    index = np.arange(len(scores))
    ranked = weights[index[:, None], ids]
    # Summed one after the other from the most probable on: how many follow makes no difference.
    cumulative = ranked.cumsum(axis=1)
    last = np.minimum(top_k, candidate_count) - 1
    enough = sampling["top_p"] * np.where(limited, cumulative[index, last], weights.sum(axis=1))
    within_top_p = 1 + np.count_nonzero(cumulative[:, :-1] < enough[:, None], axis=1)
    within_min_p = np.count_nonzero(ranked >= sampling["min_p"][:, None], axis=1)
    kept = np.minimum(np.minimum(top_k, within_top_p), within_min_p)
    places = _first_above(cumulative, uniforms * cumulative[index, kept - 1])
    tokens: NDArray[np.int64] = ids[index, places]
    if candidate_count < vocabulary_size:
        at = np.flatnonzero(~limited & (cumulative[:, -1] < enough) & (ranked[:, -1] >= sampling["min_p"]))
        if len(at):
            tokens[at] = _draw_by_rank(scores[at], weights[at], sampling[at], uniforms[at], vocabulary_size)
    return tokens


def most_probable(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ids of the largest, in order, int64 [R, count]; of equals the lower id first."""
    # Whole numbers that sort by score, from the largest on, and then by id. The bits of a float sort as the whole
    # number that they are, but negative ones backwards; subtracted from 0, because that leaves one zero of the two.
    bits = (np.float32(0) - scores).view(np.int32)
    bits ^= (bits >> 31) & 0x7FFF_FFFF
    keys = (bits.astype(np.int64) << 32) | np.arange(scores.shape[1])
    if count < scores.shape[1]:
        keys = np.partition(keys, count - 1, axis=1)[:, :count]
    keys.sort(axis=1)
    return keys & 0xFFFF_FFFF


def _first_above(cumulative: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first place of each row [R, N] above its threshold [R], which is at least 0: never one without weight."""
    places: NDArray[np.int64] = (cumulative > thresholds[:, None]).argmax(axis=1)
    return places
