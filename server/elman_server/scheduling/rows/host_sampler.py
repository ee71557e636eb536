"""Sampling on the host, for rows whose logits are shaped, constrained by a grammar, or reported.

Such a row takes one step per run, because what it may choose next depends on what it has chosen.

Axes: R of the rows, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.constraints import Matcher
from elman_server.decoding.host.choosing import Choices as Chosen
from elman_server.decoding.host.choosing import choose_tokens, shape_scores
from elman_server.decoding.host.drawing import most_probable
from elman_server.decoding.host.shaped_rows import NO_TOKEN, ShapedRows
from elman_server.decoding.host.shaping import Shaping
from elman_server.scheduling.events import TokenReport
from elman_server.scheduling.interface import INTERNAL
from elman_server.scheduling.isolation import try_each
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.rows.choices import Choices
from elman_server.scheduling.rows.conflicts import forced_beyond, nothing_to_choose
from elman_server.scheduling.rows.constrained_rows import ConstrainedRows
from elman_server.scheduling.sequence import Beams, Generation, Sequence

_NOTHING = Shaping()


class HostSampler:
    """The rows that choose on the host, by their numbers in the batch; implements `RowStore`. A negative number stands
    for a sequence that has no row at the moment.

    Args:
        name: the model's name, for the log.
        policy: the thresholds.
        vocabulary_size: V.
        forbidden_tokens: the tokens that are never chosen.
    """

    def __init__(
        self, name: str, policy: SchedulingPolicy, vocabulary_size: int, forbidden_tokens: Several[int]
    ) -> None:
        self._name = name
        self._vocabulary_size = vocabulary_size
        self._shaped = ShapedRows(vocabulary_size, forbidden_tokens)
        self._rows: list[int] = []  # of the batch, by their number in `_shaped`
        self._numbers: dict[int, int] = {}  # the inverse
        self._constrained = ConstrainedRows(name, policy, vocabulary_size)

    def append(self, row: int, sequence: Sequence) -> None:
        """A sequence gets a row; harmless for one that does not choose here."""
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
                self._constrained.append(row, params.grammar, generated, sequence.caller, sequence.matcher)
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
        self._numbers[row] = self._shaped.append(shaping, **options)
        self._rows.append(row)

    def release(self, row: int) -> None:
        self._constrained.release(row)
        number = self._numbers.pop(row, None)
        if number is None:
            return
        last = self._shaped.remove(number)
        if last != number:
            self._rows[number] = self._rows[last]
            self._numbers[self._rows[number]] = number
        self._rows.pop()

    def move(self, source: int, destination: int) -> None:
        number = self._numbers.pop(source, None)
        if number is not None:
            self._numbers[destination] = number
            self._rows[number] = destination
        self._constrained.move(source, destination)

    def pending(self) -> dict[int, Future[Any]]:
        """Return the rows that cannot choose yet, and what they wait for."""
        return dict(self._constrained.pending())

    def prepare(self, rows: Several[int]) -> None:
        """Start to compute what the grammars of `rows`, which choose next, allow."""
        self._constrained.prepare(rows)

    def choose(self, rows: Several[int], logits: NDArray[np.float32], uniforms: NDArray[np.float32]) -> Choices:
        """Choose a token for each of some generations.

        Args:
            rows: their rows in the batch, for which `prepare` was called.
            logits: float32 [R, V].
            uniforms: float32 [R], the random number of each choice.
        """
        numbers = np.array([self._numbers[row] for row in rows])
        allowed = self._constrained.take(rows)

        def choose_for(part: slice) -> Chosen:
            own = None if allowed is None else allowed[part]
            return choose_tokens(self._shaped, numbers[part], logits[part], uniforms[part], own)

        forced = self._shaped.records["next_forced"][numbers]
        try:
            found, failed = choose_for(slice(None)), list[int]()
        except Exception:  # Nothing has changed: the rows that meet the defect are found.
            found, failed = self._choose_alone(len(rows), choose_for)
        self._shaped.note(numbers, found.tokens)
        choices = Choices(found.tokens, {rows[index]: INTERNAL for index in failed}, [], [])
        for index in np.flatnonzero(found.impossible).tolist():
            if rows[index] not in choices.errors:
                left = [] if allowed is None else np.flatnonzero(allowed[index]).tolist()
                self._refuse(rows[index], left, int(forced[index]), choices, finite=bool(found.finite[index]))
        if allowed is not None:
            for index in np.flatnonzero(~found.impossible).tolist():
                if self._constrained.get(rows[index]) is not None:
                    self._accept(rows[index], int(found.tokens[index]), choices)
        return choices

    def _choose_alone(self, count: int, choose_for: Callable[[slice], Chosen]) -> tuple[Chosen, list[int]]:
        """The choices of each row alone, and the indices of the rows that fail."""
        alone, failed = try_each(self._name, range(count), lambda index: choose_for(slice(index, index + 1)))
        found = Chosen(np.zeros(count, np.int64), np.ones(count, np.bool_), np.ones(count, np.bool_))
        for index, one in alone.items():
            found.tokens[index], found.impossible[index] = one.tokens[0], one.impossible[0]
            found.finite[index] = one.finite[0]
        return found, failed

    def _accept(self, row: int, token: int, choices: Choices) -> None:
        one = self._constrained.accept(row, token)
        if one.is_defective:
            choices.errors[row] = INTERNAL
        elif one.work is not None:
            return  # What follows is known later.
        elif one.matcher.error is not None:
            choices.errors[row] = nothing_to_choose(one.matcher, (), None, finite=True)
        elif one.matcher.is_exhausted:
            self._complete(row, one.matcher, choices, choices.complete)

    def _refuse(self, row: int, allowed: Several[int], forced: int, choices: Choices, *, finite: bool) -> None:
        """No token can be chosen for a row.

        Args:
            row: the row.
            allowed: what its grammar allows.
            forced: the token that has to be chosen, or NO_TOKEN.
            choices: receives the error, or that the row is complete.
            finite: whether the model's output is finite.
        """
        one = self._constrained.get(row)
        matcher = None if one is None else one.matcher
        if one is not None and one.is_defective:
            choices.errors[row] = INTERNAL
        elif matcher is not None and matcher.is_complete and finite:
            self._complete(row, matcher, choices, choices.exhausted, forced)
        else:
            wanted = None if forced == NO_TOKEN else forced
            choices.errors[row] = nothing_to_choose(matcher, allowed, wanted, finite=finite)

    def _complete(
        self, row: int, matcher: Matcher, choices: Choices, complete: list[int], forced: int | None = None
    ) -> None:
        """The text of a row is complete, which is an error if a token is still forced."""
        if forced is None:
            forced = int(self._shaped.records["next_forced"][self._numbers[row]])
        if forced == NO_TOKEN or forced == matcher.end_token:
            complete.append(row)
        else:
            choices.errors[row] = forced_beyond(matcher, forced)

    def shape(self, rows: Several[int], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores of some beams, float32 [R, V], after everything that changes them."""
        return shape_scores(self._shaped, np.array([self._numbers[row] for row in rows]), scores)

    def branch(self, beams: Beams, rows: Several[int], sources: Several[int], tokens: Several[int]) -> None:
        """Turn rows into continuations of rows of the same search, by one token each.

        Args:
            beams: the search.
            rows: the rows; some may be new.
            sources: the row that each continues.
            tokens: the token that continues each.
        """
        for row in rows:
            if row not in self._numbers:
                self.append(row, beams)
        numbers = np.array([self._numbers[row] for row in rows])
        self._shaped.rearrange(numbers, np.array([self._numbers[row] for row in sources]))
        self._shaped.note(numbers, np.array(tokens))


def reports_of(logits: NDArray[np.float32], tokens: NDArray[np.int64], counts: Several[int]) -> list[TokenReport]:
    """The log-probabilities of tokens, and of the most probable ones in their place.

    Args:
        logits: float32 [R, V], as the model returned them.
        tokens: int64 [R].
        counts: how many of the most probable tokens each row reports.
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
    """Natural logarithms of the probabilities, float32 [R, V]. A row's result does not depend on the others, to the
    bit."""
    distances = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float32] = distances - np.log(np.exp(distances).sum(axis=1, keepdims=True))
    return found
