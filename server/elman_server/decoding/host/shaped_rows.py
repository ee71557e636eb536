"""The rows whose logits are shaped: the options of each, and what it has generated as far as they depend on it.

Axes: R rows of a call, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.host.drawing import SAMPLING
from elman_server.decoding.host.shaping import Shaping

NO_TOKEN = -1

_FLOAT32 = np.finfo(np.float32)
_INITIAL_CAPACITY = 8  # rows

# The tables with a value per token. A record says whether its row uses a table; a row that does not is neither read nor
# moved.
_TABLES = {
    "biases": np.float32,
    "factors": np.float32,  # the repetition penalty where the token has occurred, else 1
    "counts": np.float32,  # number of times that the token has been generated
    "forbidden": np.bool_,
}

_RECORD = np.dtype(
    [
        *((name, np.bool_) for name in _TABLES),
        ("generated_count", np.int64),
        ("end_token", np.int64),  # NO_TOKEN without one
        ("min_tokens", np.int64),  # 0 without an end token
        ("next_forced", np.int64),  # NO_TOKEN where the next token is free
        ("repetition_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("sampling", SAMPLING),
    ]
)


class ShapedRows:
    """Rows 0 to `len(rows) - 1`, kept compact. `choosing` applies them.

    Args:
        vocabulary_size: V.
        forbidden_tokens: the tokens that no row may choose.

    Attributes:
        vocabulary_size: V.
        forbidden_tokens: the same as an index.
        records: structured array with a record per row; its capacity is at least the number of rows.
        tables: by name, [capacity, V]; a row is valid where the field of that name in its record is set.
    """

    def __init__(self, vocabulary_size: int, forbidden_tokens: Sequence[int] = ()) -> None:
        self.vocabulary_size = vocabulary_size
        self.forbidden_tokens = np.array(forbidden_tokens, np.int64)
        self.records = np.zeros(_INITIAL_CAPACITY, _RECORD)
        self.tables: dict[str, NDArray[Any]] = {
            name: np.zeros((_INITIAL_CAPACITY, vocabulary_size), dtype) for name, dtype in _TABLES.items()
        }
        self._forced: list[tuple[int, ...]] = []  # by row

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
        """Add a row.

        Args:
            shaping: how its logits are changed.
            temperature: at least 0.
            top_k: at least 1, or None.
            top_p: above 0, at most 1.
            min_p: 0 to 1.
            end_token: the token that ends the sequence, if any.
            prompt: int64 [tokens].
            generated: int64 [tokens], what the sequence has generated so far; counts as noted.

        Returns:
            The number of the row.
        """
        row = len(self)
        if row == len(self.records):
            self._grow()
        record = np.zeros((), _RECORD)
        record["generated_count"] = len(generated)
        record["end_token"] = NO_TOKEN if end_token is None else end_token
        record["min_tokens"] = 0 if end_token is None else shaping.min_tokens
        record["next_forced"] = _forced_at(shaping.forced_tokens, len(generated))
        record["repetition_penalty"] = max(_to_float32(shaping.repetition_penalty), _FLOAT32.tiny)
        record["frequency_penalty"] = _to_float32(shaping.frequency_penalty)
        record["presence_penalty"] = _to_float32(shaping.presence_penalty)
        count = self.vocabulary_size if top_k is None else min(top_k, self.vocabulary_size)
        record["sampling"] = (temperature, count, top_p, min_p)
        record["biases"] = bool(shaping.logit_bias)
        record["factors"] = shaping.repetition_penalty != 1
        record["counts"] = shaping.frequency_penalty != 0 or shaping.presence_penalty != 0
        record["forbidden"] = bool(shaping.forbidden_tokens)
        self.records[row] = record
        self._fill(row, shaping, prompt, generated)
        self._forced.append(shaping.forced_tokens)  # The row is there from now on.
        return row

    def _grow(self) -> None:
        """Double the capacity."""
        records, capacity = self.records, 2 * len(self.records)
        self.records = np.zeros(capacity, _RECORD)
        self.records[: len(records)] = records
        for name, table in self.tables.items():
            self.tables[name] = np.zeros((capacity, self.vocabulary_size), table.dtype)
            used = np.flatnonzero(records[name])
            self.tables[name][used] = table[used]

    def _fill(self, row: int, shaping: Shaping, prompt: NDArray[np.int64], generated: NDArray[np.int64]) -> None:
        """Write the row of each table that it uses."""
        record = self.records[row]
        if record["biases"]:
            biases = self.tables["biases"][row]
            biases[:] = 0
            biases[list(shaping.logit_bias)] = _to_float32(list(shaping.logit_bias.values()))
        if record["factors"]:
            factors = self.tables["factors"][row]
            factors[:] = 1
            factors[prompt] = factors[generated] = record["repetition_penalty"]
        if record["counts"]:
            self.tables["counts"][row] = np.bincount(generated, minlength=self.vocabulary_size)
        if record["forbidden"]:
            forbidden = self.tables["forbidden"][row]
            forbidden[:] = False
            forbidden[list(shaping.forbidden_tokens)] = True

    def remove(self, row: int) -> int:
        """Remove a row; the last row takes its number.

        Returns:
            The number that the moved row had.
        """
        last = len(self) - 1
        if row != last:
            self.rearrange(np.array([row]), np.array([last]))
        self._forced.pop()
        return last

    def rearrange(self, rows: NDArray[np.int64], sources: NDArray[np.int64]) -> None:
        """Make rows copies of others, simultaneously: `rows[i]` becomes what `sources[i]` was before.

        Args:
            rows: int64 [R], without repetition.
            sources: int64 [R].
        """
        moved = rows != sources
        rows, sources = rows[moved], sources[moved]
        records = self.records[sources]
        self.records[rows] = records
        for name, table in self.tables.items():
            used = np.flatnonzero(records[name])
            if len(used):
                table[rows[used]] = table[sources[used]]
        forced = [self._forced[source] for source in sources.tolist()]
        for row, tokens in zip(rows.tolist(), forced, strict=True):
            self._forced[row] = tokens

    def note(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Record that tokens have been generated.

        Args:
            rows: int64 [R], without repetition.
            tokens: int64 [R], one per row.
        """
        self.records["generated_count"][rows] += 1
        records = self.records[rows]
        used = np.flatnonzero(records["factors"])
        if len(used):
            self.tables["factors"][rows[used], tokens[used]] = records["repetition_penalty"][used]
        used = np.flatnonzero(records["counts"])
        if len(used):
            self.tables["counts"][rows[used], tokens[used]] += 1
        for index in np.flatnonzero(records["next_forced"] != NO_TOKEN).tolist():
            row, count = int(rows[index]), int(records["generated_count"][index])
            self.records["next_forced"][row] = _forced_at(self._forced[row], count)


def _to_float32(values: float | list[float]) -> Any:
    """Convert to finite float32: an infinite penalty times 0 would be NaN."""
    return np.clip(values, -_FLOAT32.max, _FLOAT32.max).astype(np.float32)


def _forced_at(forced_tokens: tuple[int, ...], count: int) -> int:
    """Return the token that has to follow `count` generated tokens, or NO_TOKEN."""
    return forced_tokens[count] if count < len(forced_tokens) else NO_TOKEN
