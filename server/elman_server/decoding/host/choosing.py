"""From the logits of shaped rows to tokens, for many rows at a time.

No row's result depends on the other rows. Axes: R rows of a call, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.host.drawing import draw, select_rows
from elman_server.decoding.host.shaped_rows import NO_TOKEN, ShapedRows

_FORBIDDEN = np.float32(-np.inf)
_BLOCK_SCORES = 1 << 17  # scores that are processed together, so that intermediate results stay in the cache


@dataclass(frozen=True)
class Choices:
    """One token per row.

    Attributes:
        tokens: int64 [R]; an arbitrary token where `impossible`.
        impossible: bool [R], where no token is left to choose, or the logits are not finite.
        finite: bool [R], whether there is a finite logit, and none is NaN or +inf.
    """

    tokens: NDArray[np.int64]
    impossible: NDArray[np.bool_]
    finite: NDArray[np.bool_]


def shape_scores(
    table: ShapedRows, rows: NDArray[np.int64], scores: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Apply everything that changes scores before the temperature (1 to 8 of `shaping`).

    Args:
        table: the rows.
        rows: int64 [R], their numbers.
        scores: float32 [R, V], logits or log-probabilities; left unchanged.
        allowed: bool [R, V], what grammars allow; True for a row without one.

    Returns:
        float32 [R, V].
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return _shape(table, rows, table.records[rows], scores, allowed)


def choose_tokens(
    table: ShapedRows,
    rows: NDArray[np.int64],
    logits: NDArray[np.float32],
    uniforms: NDArray[np.float32],
    allowed: NDArray[np.bool_] | None = None,
) -> Choices:
    """Shape the logits and choose a token for each row. The tokens are not noted in the table.

    Args:
        table: the rows.
        rows: int64 [R], their numbers.
        logits: float32 [R, V]; left unchanged.
        uniforms: float32 [R], at least 0 and less than 1.
        allowed: bool [R, V], what grammars allow; True for a row without one.
    """
    choices = Choices(np.zeros(len(rows), np.int64), *np.zeros((2, len(rows)), np.bool_))
    count = max(1, _BLOCK_SCORES // table.vocabulary_size)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for start in range(0, len(rows), count):
            part = slice(start, start + count)
            choices.tokens[part], choices.impossible[part], choices.finite[part] = _choose(
                table, rows[part], logits[part], uniforms[part], None if allowed is None else allowed[part]
            )
    return choices


def _shape(
    table: ShapedRows,
    rows: NDArray[np.int64],
    records: NDArray[Any],
    scores: NDArray[np.float32],
    allowed: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    shaped = np.array(scores, np.float32, order="C")
    _apply_biases_and_penalties(table, rows, records, shaped)
    short = np.flatnonzero(records["generated_count"] < records["min_tokens"])
    if len(short):
        shaped[short, records["end_token"][short]] = _FORBIDDEN
    if allowed is not None:
        shaped = np.where(allowed, shaped, _FORBIDDEN)
        stuck = np.flatnonzero(_largest(shaped)[1] == _FORBIDDEN)
        if len(stuck):
            shaped[stuck] = np.where(allowed[stuck], np.float32(0), _FORBIDDEN)
    forced = np.flatnonzero(records["next_forced"] != NO_TOKEN)
    if len(forced):
        tokens = records["next_forced"][forced]
        shaped[forced] = _FORBIDDEN
        shaped[forced, tokens] = 0 if allowed is None else np.where(allowed[forced, tokens], 0, _FORBIDDEN)
    if (at := select_rows(records["forbidden"])) is not None:
        shaped[at] = np.where(table.tables["forbidden"][rows[at]], _FORBIDDEN, shaped[at])
    if len(table.forbidden_tokens):
        shaped[:, table.forbidden_tokens] = _FORBIDDEN
    return shaped


def _apply_biases_and_penalties(
    table: ShapedRows, rows: NDArray[np.int64], records: NDArray[Any], shaped: NDArray[np.float32]
) -> None:
    """Apply 1 to 4 of `shaping` in place."""
    if (at := select_rows(records["biases"])) is not None:
        shaped[at] += table.tables["biases"][rows[at]]
    if (at := select_rows(records["factors"])) is not None:
        factors, part = table.tables["factors"][rows[at]], shaped[at]
        shaped[at] = np.maximum(part, 0) / factors + np.minimum(part, 0) * factors
    if (at := select_rows(records["counts"])) is not None:
        counts = table.tables["counts"][rows[at]]
        shaped[at] -= records["frequency_penalty"][at, None] * counts
        shaped[at] -= records["presence_penalty"][at, None] * (counts > 0)


def _choose(
    table: ShapedRows,
    rows: NDArray[np.int64],
    logits: NDArray[np.float32],
    uniforms: NDArray[np.float32],
    allowed: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the tokens, where none can be chosen, and where the logits are finite, [R] each."""
    records = table.records[rows]
    scores = _shape(table, rows, records, logits, allowed)
    tokens, largest = _largest(scores)
    # The logits are checked as well: shaping may have replaced a wrong one.
    highest = _largest(logits)[1]
    finite = (highest > -np.inf) & (highest < np.inf)
    possible = (highest < np.inf) & (largest > -np.inf) & (largest < np.inf)
    sampling = records["sampling"]
    if (at := select_rows(possible & (sampling["temperature"] > 0))) is not None:
        tokens[at] = draw(scores[at], largest[at], sampling[at], uniforms[at])
    return tokens, ~possible, finite


def _largest(scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the tokens with the largest scores, of equals the lowest ids, and these scores, both [R]; NaN counts as
    the largest."""
    tokens = scores.argmax(axis=1)
    return tokens, scores[np.arange(len(scores)), tokens]
