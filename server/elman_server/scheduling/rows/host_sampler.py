"""Sampling on the host, for rows whose logits are shaped, constrained by a grammar, or reported.

Such a row takes one step per run, because what it may choose next depends on what it has chosen. The tokens that
grammars allow are computed while the model runs.

Axes: R of the rows, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.constraints import Matcher, allowed_tokens
from elman_server.decoding.host.choosing import Choices as Chosen
from elman_server.decoding.host.choosing import choose_tokens, shape_scores
from elman_server.decoding.host.drawing import most_probable
from elman_server.decoding.host.shaped_rows import ShapedRows
from elman_server.decoding.host.shaping import Shaping
from elman_server.scheduling.events import TokenReport
from elman_server.scheduling.interface import INTERNAL
from elman_server.scheduling.isolation import log_defect, try_each
from elman_server.scheduling.sequence import Beams, Generation, Sequence

_NOTHING = Shaping()
_NOTHING_LEFT = "no token is left to choose: everything is forbidden, or the model's output is not finite"
_NOTHING_MATCHES = "the constraint allows no token that the model knows"


@dataclass(frozen=True)
class Choices:
    """The tokens that rows have chosen.

    Attributes:
        tokens: int64 [R]; a token without meaning for the rows in `errors` and `exhausted`.
        errors: by row, why none could be chosen.
        complete: the rows whose token is the last one: their grammar allows nothing after it.
        exhausted: the rows whose text matched before: nothing that may follow can be chosen.
    """

    tokens: NDArray[np.int64]
    errors: dict[int, str]
    complete: list[int]
    exhausted: list[int]


@dataclass(frozen=True)
class _Work:
    """What is computed while the model runs.

    Attributes:
        matchers: of N grammars.
        allowed: bool [N, V], what they allow, once `end` is done.
        end: when it has been computed.
    """

    matchers: list[Matcher]
    allowed: NDArray[np.bool_]
    end: Future[None]


class HostSampler:
    """The rows that choose on the host, by their numbers in the batch; implements `RowStore`. A negative number stands
    for a sequence that has no row at the moment.

    Args:
        name: the model's name, for the log.
        vocabulary_size: V.
        forbidden_tokens: the tokens that are never chosen.
    """

    def __init__(self, name: str, vocabulary_size: int, forbidden_tokens: Several[int]) -> None:
        self._name = name
        self._vocabulary_size = vocabulary_size
        self._shaped = ShapedRows(vocabulary_size, forbidden_tokens)
        self._rows: list[int] = []  # of the batch, by their number in `_shaped`
        self._numbers: dict[int, int] = {}  # the inverse
        self._matchers: dict[int, Matcher] = {}  # by row of the batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._work: _Work | None = None
        self._defective = WeakSet[Matcher]()

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
                self._matchers[row] = sequence.matcher or params.grammar.after(generated.tolist())
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
        self._matchers.pop(row, None)
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
        matcher = self._matchers.pop(source, None)
        if matcher is not None:
            self._matchers[destination] = matcher

    def clear(self, count: int) -> None:
        """Forget the first `count` rows."""
        self._work = None
        for row in range(count):
            self.release(row)

    def prepare(self, rows: Several[int]) -> None:
        """Start to compute what the grammars of `rows`, which choose next, allow. Work that was started before and not
        used, because a run failed, is started again."""
        self._work = None
        matchers = [matcher for row in rows if (matcher := self._matchers.get(row))]
        if matchers:
            allowed = np.empty((len(matchers), self._vocabulary_size), np.bool_)
            self._work = _Work(matchers, allowed, self._thread.submit(self._find_allowed, matchers, allowed))

    def _find_allowed(self, matchers: list[Matcher], allowed: NDArray[np.bool_]) -> None:
        """What matchers allow, bool [N, V]: nothing where one meets a defect."""
        try:
            allowed_tokens(matchers, allowed)
        except Exception:
            _, failed = try_each(
                self._name,
                range(len(matchers)),
                lambda index: allowed_tokens([matchers[index]], allowed[index : index + 1]),
            )
            allowed[failed] = False
            self._defective.update(matchers[index] for index in failed)

    def _take_allowed(self, rows: Several[int]) -> NDArray[np.bool_] | None:
        """What the grammars of `rows` allow, [R, V]; None if none of them has one."""
        work, self._work = self._work, None
        if work is None:
            return None
        work.end.result()
        free = len(work.matchers)
        indices: dict[Matcher | None, int] = dict(zip(work.matchers, range(free), strict=True))
        numbers = [indices.get(self._matchers.get(row), free) for row in rows]
        if min(numbers, default=free) == free:
            return None
        anything = np.ones((1, self._vocabulary_size), np.bool_)
        found: NDArray[np.bool_] = np.concatenate([work.allowed, anything])[numbers]
        return found

    def choose(self, rows: Several[int], logits: NDArray[np.float32], uniforms: NDArray[np.float32]) -> Choices:
        """Choose a token for each of some generations.

        Args:
            rows: their rows in the batch, for which `prepare` was called.
            logits: float32 [R, V].
            uniforms: float32 [R], the random number of each choice.
        """
        numbers = np.array([self._numbers[row] for row in rows])
        allowed = self._take_allowed(rows)

        def choose_for(part: slice) -> Chosen:
            own = None if allowed is None else allowed[part]
            return choose_tokens(self._shaped, numbers[part], logits[part], uniforms[part], own)

        try:
            found, failed = choose_for(slice(None)), list[int]()
        except Exception:  # Nothing has changed: the rows that meet the defect are found.
            found, failed = self._choose_alone(len(rows), choose_for)
        self._shaped.note(numbers, found.tokens)
        choices = Choices(found.tokens, {rows[index]: str(INTERNAL) for index in failed}, [], [])
        impossible = {rows[index] for index in np.flatnonzero(found.impossible).tolist()}
        for row, token in zip(rows, found.tokens.tolist(), strict=True) if self._matchers else ():
            if row not in impossible and row in self._matchers:
                self._accept(row, token, choices)
        for row in impossible - choices.errors.keys():
            self._refuse(row, choices)
        return choices

    def _choose_alone(self, count: int, choose_for: Callable[[slice], Chosen]) -> tuple[Chosen, list[int]]:
        """The choices of each row alone, and the indices of the rows that fail."""
        alone, failed = try_each(self._name, range(count), lambda index: choose_for(slice(index, index + 1)))
        found = Chosen(np.zeros(count, np.int64), np.ones(count, np.bool_))
        for index, one in alone.items():
            found.tokens[index], found.impossible[index] = one.tokens[0], one.impossible[0]
        return found, failed

    def _accept(self, row: int, token: int, choices: Choices) -> None:
        matcher = self._matchers[row]
        try:
            matcher.accept(token)
        except Exception:
            log_defect(self._name)
            choices.errors[row] = str(INTERNAL)
            return
        if matcher.error is not None:
            choices.errors[row] = matcher.error
        elif matcher.is_exhausted:
            choices.complete.append(row)

    def _refuse(self, row: int, choices: Choices) -> None:
        matcher = self._matchers.get(row)
        if matcher is None:
            choices.errors[row] = _NOTHING_LEFT
        elif matcher in self._defective:
            choices.errors[row] = str(INTERNAL)
        elif matcher.is_complete:
            choices.exhausted.append(row)
        else:
            choices.errors[row] = matcher.error or _NOTHING_MATCHES

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
