"""The choices that are made on the host: for rows whose logits something changes, or has to look at.

Such a row chooses after one step at a time, because what it may choose next depends on what it has chosen. A grammar's
next tokens are worked out beside the model's step.

Axes: R of the rows, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.constraints import Matcher, allowed_tokens
from elman_server.decoding.drawing import most_probable
from elman_server.decoding.shaping import ShapedRows, Shaping
from elman_server.scheduling.sequence import Beams, Generation, Sequence, TokenReport

_NOTHING = Shaping()
_NOTHING_LEFT = "no token is left to choose: everything is forbidden, or the model's output is not finite"
_NOTHING_MATCHES = "the constraint allows no token that the model knows"


@dataclass(frozen=True)
class Choices:
    """What rows have chosen.

    Attributes:
        tokens: int64 [R]; meaningless, but a token, for those of `errors` and of `exhausted`.
        errors: by row, why there is none.
        complete: the rows whose token is the last one, because the grammar lets nothing follow it.
        exhausted: the rows whose output was complete before, because nothing that may follow can be chosen.
    """

    tokens: NDArray[np.int64]
    errors: dict[int, str]
    complete: list[int]
    exhausted: list[int]


@dataclass(frozen=True)
class _Work:
    """What goes on beside the model.

    Attributes:
        matchers: of some grammars, N of them.
        allowed: bool [N, V], what they allow, when it has ended.
        end: of the work.
    """

    matchers: list[Matcher]
    allowed: NDArray[np.bool_]
    end: Future[None]


class HostChoice:
    """What is known of the rows that choose on the host, by the numbers they have in the batch.

    Args:
        vocabulary_size: V.
        forbidden_token: a token that is never chosen.
    """

    def __init__(self, vocabulary_size: int, forbidden_token: int | None) -> None:
        self._vocabulary_size = vocabulary_size
        self._table = ShapedRows(vocabulary_size, forbidden_token)
        self._rows: list[int] = []  # of the batch, by their place in the table
        self._places: dict[int, int] = {}
        self._matchers: dict[int, Matcher] = {}  # by row of the batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._begun: _Work | None = None

    def append(self, row: int, sequence: Sequence) -> None:
        """A row begins. Harmless for one that does not choose here."""
        if isinstance(sequence, Generation) and sequence.params.needs_logits:
            params = sequence.params
            prompt, generated = sequence.split()
            self._add(
                row,
                params.shaping or _NOTHING,
                temperature=params.temperature,
                top_k=self._vocabulary_size if params.top_k is None else params.top_k,
                top_p=params.top_p,
                min_p=params.min_p,
                end_token=params.end_token,
                prompt=prompt,
                generated=generated,
            )
            if params.grammar is not None:
                matcher = self._matchers[row] = params.grammar.start()
                for token in generated.tolist():
                    matcher.accept(token)
        elif isinstance(sequence, Beams) and sequence.shaping is not None:
            self._add(
                row,
                sequence.shaping,
                temperature=1.0,
                top_k=self._vocabulary_size,
                top_p=1.0,
                min_p=0.0,
                end_token=sequence.params.end_token,
                prompt=np.concatenate([sequence.history, sequence.forced]),
                generated=np.empty(0, np.int64),
            )

    def _add(self, row: int, shaping: Shaping, **options: Any) -> None:
        self._places[row] = self._table.append(shaping, **options)
        self._rows.append(row)

    def remove(self, row: int) -> None:
        """A row ends. Harmless for one that does not choose here."""
        self._matchers.pop(row, None)
        place = self._places.pop(row, None)
        if place is None:
            return
        last = self._table.remove(place)
        if last != place:
            self._rows[place] = self._rows[last]
            self._places[self._rows[place]] = place
        self._rows.pop()

    def move(self, source: int, destination: int) -> None:
        """A row has another number."""
        place = self._places.pop(source, None)
        if place is not None:
            self._places[destination] = place
            self._rows[place] = destination
        matcher = self._matchers.pop(source, None)
        if matcher is not None:
            self._matchers[destination] = matcher

    def clear(self) -> None:
        """All rows end."""
        self._begun = None
        for row in list(self._places):
            self.remove(row)

    def prepare(self, rows: Several[int]) -> None:
        """Begin to work out what the grammars of some rows, which choose next, allow. What has begun before and was
        not taken, because a run has failed, is begun again."""
        self._begun = None
        matchers = [matcher for row in rows if (matcher := self._matchers.get(row))]
        if matchers:
            allowed = np.empty((len(matchers), self._vocabulary_size), np.bool_)
            self._begun = _Work(matchers, allowed, self._thread.submit(allowed_tokens, matchers, allowed))

    def _take_allowed(self, rows: Several[int]) -> NDArray[np.bool_] | None:
        """[R, V], what has been worked out; None if no grammar is among the rows."""
        work, self._begun = self._begun, None
        if work is None:
            return None
        work.end.result()
        free = len(work.matchers)
        places: dict[Matcher | None, int] = dict(zip(work.matchers, range(free), strict=True))
        numbers = [places.get(self._matchers.get(row), free) for row in rows]
        if min(numbers, default=free) == free:
            return None
        anything = np.ones((1, self._vocabulary_size), np.bool_)
        found: NDArray[np.bool_] = np.concatenate([work.allowed, anything])[numbers]
        return found

    def choose(self, rows: Several[int], logits: NDArray[np.float32], uniforms: NDArray[np.float32]) -> Choices:
        """Choose a token for each of some generations, and note it.

        Args:
            rows: which, in the batch; they have been prepared.
            logits: [R, V].
            uniforms: [R], the random number of each choice.
        """
        places = np.array([self._places[row] for row in rows])
        allowed = self._take_allowed(rows)
        found = self._table.choose(places, logits, uniforms, allowed)
        self._table.note(places, found.tokens)
        choices = Choices(found.tokens, {}, [], [])
        impossible = {rows[index] for index in np.flatnonzero(found.impossible).tolist()}
        for row, token in zip(rows, found.tokens.tolist(), strict=True) if self._matchers else ():
            if row not in impossible and row in self._matchers:
                self._accept(row, token, choices)
        for row in impossible:
            self._refuse(row, choices)
        return choices

    def _accept(self, row: int, token: int, choices: Choices) -> None:
        matcher = self._matchers[row]
        matcher.accept(token)
        if matcher.error is not None:
            choices.errors[row] = matcher.error
        elif matcher.is_exhausted:
            choices.complete.append(row)

    def _refuse(self, row: int, choices: Choices) -> None:
        matcher = self._matchers.get(row)
        if matcher is None:
            choices.errors[row] = _NOTHING_LEFT
        elif matcher.is_complete:
            choices.exhausted.append(row)
        else:
            choices.errors[row] = matcher.error or _NOTHING_MATCHES

    def shape(self, rows: Several[int], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores [R, V] of some beams, shaped."""
        return self._table.shape(np.array([self._places[row] for row in rows]), scores)

    def branch(self, beams: Beams, rows: Several[int], sources: Several[int], tokens: Several[int]) -> None:
        """Rows become continuations of others of the same search, by a token each.

        Args:
            beams: the search.
            rows: the rows; some may be new.
            sources: of which rows they are continuations.
            tokens: by which tokens.
        """
        for row in rows:
            if row not in self._places:
                self.append(row, beams)
        places = np.array([self._places[row] for row in rows])
        self._table.rearrange(places, np.array([self._places[row] for row in sources]))
        self._table.note(places, np.array(tokens))


def reports_of(logits: NDArray[np.float32], tokens: NDArray[np.int64], counts: Several[int]) -> list[TokenReport]:
    """How probable tokens were.

    Args:
        logits: [R, V], of the model itself.
        tokens: int64 [R].
        counts: how many of the most probable tokens each row wants to be told.
    """
    values = log_softmax(logits)
    chosen = values[np.arange(len(values)), tokens].tolist()
    most = min(max(counts), values.shape[1])
    ids = most_probable(values, most) if most else np.empty((len(values), 0), np.int64)
    likely = np.take_along_axis(values, ids, axis=1).tolist()
    return [
        TokenReport(value, tuple(zip(row_ids[:count], row_values[:count], strict=True)))
        for value, row_ids, row_values, count in zip(chosen, ids.tolist(), likely, counts, strict=True)
    ]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The natural logarithms of the probabilities, [R, V]; each row's own, to the bit, whatever the others are."""
    distances = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float32] = distances - np.log(np.exp(distances).sum(axis=1, keepdims=True))
    return found
