"""Shaping: what changes the scores of tokens before one is chosen on the host, for many rows at once.

Rows that need none of it are chosen inside the graph (`choosing`). The order is that of transformers
(`GenerationMixin._get_logits_processor` in 5.23), with the penalties that it lacks where vLLM has them:

1. logit bias, added;
2. repetition penalty (CTRL, Keskar et al. 2019): scores of tokens that the prompt or the output holds are divided by it
   where they are positive and multiplied where they are negative;
3. frequency penalty, subtracted as often as the output holds the token;
4. presence penalty, subtracted once if the output holds the token;
5. minimum length: until it is reached, the end token is forbidden;
6. grammar: only what is allowed is left, and if all of that was forbidden before, all of it is equally good: a grammar
   that can only end does so, whatever the minimum length;
7. forced tokens: nothing else is left, whatever 1 to 5 say. Unlike in transformers, a grammar that does not allow the
   token is not overruled: then nothing is left;
8. forbidden tokens, and the token that no row may choose;
9. to 13. temperature, top-k, top-p, min-p and the draw (`drawing`).

Everything is done row by row, whoever is in the call. Axes: R rows of a call, V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.drawing import SAMPLING, draw, pick_rows

_NO_TOKEN = -1
_FORBIDDEN = np.float32(-np.inf)
_SINGLE = np.finfo(np.float32)
_FEWEST_ROWS = 8  # for which there is room from the start

# So many scores are worked on at a time: what is computed on the way stays in the cache.
_SCORES_AT_ONCE = 1 << 17

# What is kept for every token of a row, and in the record whether the row has it; where not, nothing is read or moved.
_TABLES = {
    "biases": np.float32,
    "factors": np.float32,  # the repetition penalty where the token has occurred, else 1
    "counts": np.float32,  # how often the token has been generated
    "forbidden": np.bool_,
}

_RECORD = np.dtype(
    [
        *((name, np.bool_) for name in _TABLES),
        ("generated_count", np.int64),
        ("end_token", np.int64),  # _NO_TOKEN where there is none
        ("min_tokens", np.int64),  # 0 where there is no end token
        ("next_forced", np.int64),  # _NO_TOKEN where the next token is free
        ("repetition_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("sampling", SAMPLING),
    ]
)


@dataclass(frozen=True)
class Shaping:
    """How a generation's scores are changed.

    Attributes:
        logit_bias: what is added to the scores of tokens.
        repetition_penalty: above 0; above 1 it makes tokens of the prompt and of the output less probable.
        frequency_penalty: subtracted from a token's score for each time that it has been generated.
        presence_penalty: subtracted from a token's score if it has been generated at all.
        forbidden_tokens: never chosen.
        min_tokens: before so many tokens have been generated, the end token is forbidden.
        forced_tokens: what the output begins with.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    forbidden_tokens: tuple[int, ...] = ()
    min_tokens: int = 0
    forced_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.repetition_penalty > 0


@dataclass(frozen=True)
class Choices:
    """One token a row.

    Attributes:
        tokens: int64 [R]; meaningless, but a token, where `impossible`.
        impossible: bool [R], where no token is left to choose, or a logit is NaN or +inf.
    """

    tokens: NDArray[np.int64]
    impossible: NDArray[np.bool_]


class ShapedRows:
    """Rows 0 to `len(rows) - 1`: how each is shaped, and what it has generated, as far as that matters.

    Args:
        vocabulary_size: V.
        forbidden_token: a token that no row may choose.
    """

    def __init__(self, vocabulary_size: int, forbidden_token: int | None) -> None:
        self._vocabulary_size = vocabulary_size
        self._forbidden_token = forbidden_token
        self._forced: list[tuple[int, ...]] = []
        self._records = np.zeros(_FEWEST_ROWS, _RECORD)
        self._tables: dict[str, NDArray[Any]] = {
            name: np.zeros((_FEWEST_ROWS, vocabulary_size), dtype) for name, dtype in _TABLES.items()
        }

    def __len__(self) -> int:
        return len(self._forced)

    def append(
        self,
        shaping: Shaping,
        *,
        temperature: float,
        top_k: int | None,
        top_p: float,
        min_p: float,
        end_token: int | None,
        prompt: NDArray[np.int64],
        generated: NDArray[np.int64],
    ) -> int:
        """Give the next row to a generation; the row.

        Args:
            shaping: how its scores are changed.
            temperature: at least 0.
            top_k: at least 1, or None.
            top_p: above 0, at most 1.
            min_p: 0 to 1.
            end_token: the token that ends the sequence, if one does.
            prompt: int64 [tokens].
            generated: int64 [tokens], what has been generated already; as if it had been noted.
        """
        row = len(self)
        if row == len(self._records):
            self._grow()
        record = np.zeros((), _RECORD)
        record["generated_count"] = len(generated)
        record["end_token"] = _NO_TOKEN if end_token is None else end_token
        record["min_tokens"] = 0 if end_token is None else shaping.min_tokens
        record["next_forced"] = _forced_at(shaping.forced_tokens, len(generated))
        record["repetition_penalty"] = max(_single(shaping.repetition_penalty), _SINGLE.tiny)
        record["frequency_penalty"] = _single(shaping.frequency_penalty)
        record["presence_penalty"] = _single(shaping.presence_penalty)
        count = self._vocabulary_size if top_k is None else min(top_k, self._vocabulary_size)
        record["sampling"] = (temperature, count, top_p, min_p)
        record["biases"] = bool(shaping.logit_bias)
        record["factors"] = shaping.repetition_penalty != 1
        record["counts"] = shaping.frequency_penalty != 0 or shaping.presence_penalty != 0
        record["forbidden"] = bool(shaping.forbidden_tokens)
        self._records[row] = record
        self._forced.append(shaping.forced_tokens)
        self._fill(row, shaping, prompt, generated)
        return row

    def _grow(self) -> None:
        """Make room for twice as many rows."""
        records, capacity = self._records, 2 * len(self._records)
        self._records = np.zeros(capacity, _RECORD)
        self._records[: len(records)] = records
        for name, table in self._tables.items():
            self._tables[name] = np.zeros((capacity, self._vocabulary_size), table.dtype)
            used = np.flatnonzero(records[name])
            self._tables[name][used] = table[used]

    def _fill(self, row: int, shaping: Shaping, prompt: NDArray[np.int64], generated: NDArray[np.int64]) -> None:
        """Write a row of each table that it has."""
        record = self._records[row]
        if record["biases"]:
            biases = self._tables["biases"][row]
            biases[:] = 0
            biases[list(shaping.logit_bias)] = _single(list(shaping.logit_bias.values()))
        if record["factors"]:
            factors = self._tables["factors"][row]
            factors[:] = 1
            factors[prompt] = factors[generated] = record["repetition_penalty"]
        if record["counts"]:
            self._tables["counts"][row] = np.bincount(generated, minlength=self._vocabulary_size)
        if record["forbidden"]:
            forbidden = self._tables["forbidden"][row]
            forbidden[:] = False
            forbidden[list(shaping.forbidden_tokens)] = True

    def remove(self, row: int) -> int:
        """Free a row: the last one takes its place; the row that has moved."""
        last = len(self) - 1
        if row != last:
            self.rearrange(np.array([row]), np.array([last]))
        self._forced.pop()
        return last

    def rearrange(self, rows: NDArray[np.int64], sources: NDArray[np.int64]) -> None:
        """Make rows copies of others, all at once: `rows[i]` becomes what `sources[i]` was before.

        Args:
            rows: int64 [R], each at most once.
            sources: int64 [R].
        """
        moved = rows != sources
        rows, sources = rows[moved], sources[moved]
        records = self._records[sources]
        self._records[rows] = records
        for name, table in self._tables.items():
            used = np.flatnonzero(records[name])
            if len(used):
                table[rows[used]] = table[sources[used]]
        forced = [self._forced[source] for source in sources.tolist()]
        for row, tokens in zip(rows.tolist(), forced, strict=True):
            self._forced[row] = tokens

    def note(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Take in that tokens have been generated.

        Args:
            rows: int64 [R], each at most once.
            tokens: int64 [R], one for each row.
        """
        self._records["generated_count"][rows] += 1
        records = self._records[rows]
        used = np.flatnonzero(records["factors"])
        if len(used):
            self._tables["factors"][rows[used], tokens[used]] = records["repetition_penalty"][used]
        used = np.flatnonzero(records["counts"])
        if len(used):
            self._tables["counts"][rows[used], tokens[used]] += 1
        for index in np.flatnonzero(records["next_forced"] != _NO_TOKEN).tolist():
            row, count = int(rows[index]), int(records["generated_count"][index])
            self._records["next_forced"][row] = _forced_at(self._forced[row], count)

    def shape(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Scores after everything that changes them before the temperature (1 to 8), float32 [R, V].

        Args:
            rows: int64 [R].
            scores: float32 [R, V], logits or log-probabilities; they are left as they are.
            allowed: bool [R, V], what a grammar allows; True for a row without one.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            return self._shape(rows, self._records[rows], scores, allowed)

    def choose(
        self,
        rows: NDArray[np.int64],
        logits: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Choices:
        """Shape the logits and choose a token for each row; what is chosen is not noted.

        Args:
            rows: int64 [R].
            logits: float32 [R, V]; they are left as they are.
            uniforms: float32 [R], at least 0 and less than 1.
            allowed: bool [R, V], what a grammar allows; True for a row without one.
        """
        choices = Choices(np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_))
        count = max(1, _SCORES_AT_ONCE // self._vocabulary_size)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for start in range(0, len(rows), count):
                part = slice(start, start + count)
                choices.tokens[part], choices.impossible[part] = self._choose(
                    rows[part], logits[part], uniforms[part], None if allowed is None else allowed[part]
                )
        return choices

    def _shape(
        self,
        rows: NDArray[np.int64],
        records: NDArray[Any],
        scores: NDArray[np.float32],
        allowed: NDArray[np.bool_] | None,
    ) -> NDArray[np.float32]:
        shaped = np.array(scores, np.float32, order="C")
        if (at := pick_rows(records["biases"])) is not None:
            shaped[at] += self._tables["biases"][rows[at]]
        if (at := pick_rows(records["factors"])) is not None:
            factors, part = self._tables["factors"][rows[at]], shaped[at]
            shaped[at] = np.maximum(part, 0) / factors + np.minimum(part, 0) * factors
        if (at := pick_rows(records["counts"])) is not None:
            counts = self._tables["counts"][rows[at]]
            shaped[at] -= records["frequency_penalty"][at, None] * counts
            shaped[at] -= records["presence_penalty"][at, None] * (counts > 0)
        short = np.flatnonzero(records["generated_count"] < records["min_tokens"])
        if len(short):
            shaped[short, records["end_token"][short]] = _FORBIDDEN
        if allowed is not None:
            shaped = np.where(allowed, shaped, _FORBIDDEN)
            stuck = np.flatnonzero(_largest(shaped)[1] == _FORBIDDEN)
            if len(stuck):
                shaped[stuck] = np.where(allowed[stuck], np.float32(0), _FORBIDDEN)
        forced = np.flatnonzero(records["next_forced"] != _NO_TOKEN)
        if len(forced):
            tokens = records["next_forced"][forced]
            shaped[forced] = _FORBIDDEN
            shaped[forced, tokens] = 0 if allowed is None else np.where(allowed[forced, tokens], 0, _FORBIDDEN)
        if (at := pick_rows(records["forbidden"])) is not None:
            shaped[at] = np.where(self._tables["forbidden"][rows[at]], _FORBIDDEN, shaped[at])
        if self._forbidden_token is not None:
            shaped[:, self._forbidden_token] = _FORBIDDEN
        return shaped

    def _choose(
        self,
        rows: NDArray[np.int64],
        logits: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        allowed: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens, and where none can be chosen, both [R]."""
        records = self._records[rows]
        scores = self._shape(rows, records, logits, allowed)
        tokens, largest = _largest(scores)
        # The logits are looked at as well: what is wrong with them may have been forbidden since.
        possible = (_largest(logits)[1] < np.inf) & (largest > -np.inf) & (largest < np.inf)
        sampling = records["sampling"]
        if (at := pick_rows(possible & (sampling["temperature"] > 0))) is not None:
            tokens[at] = draw(scores[at], largest[at], sampling[at], uniforms[at])
        return tokens, ~possible


def _single(values: float | list[float]) -> Any:
    """Values in single precision, which are finite: an infinite penalty times nothing were no number."""
    return np.clip(values, -_SINGLE.max, _SINGLE.max).astype(np.float32)


def _forced_at(forced_tokens: tuple[int, ...], count: int) -> int:
    """The token that has to follow on `count` tokens, or _NO_TOKEN."""
    return forced_tokens[count] if count < len(forced_tokens) else _NO_TOKEN


def _largest(scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tokens of the largest scores, of equals the lowest ids, and these scores, both [R]; NaN is the largest."""
    tokens = scores.argmax(axis=1)
    return tokens, scores[np.arange(len(scores)), tokens]
