"""The rows whose text has to match a grammar: what each may choose next, and its progress.

What grammars allow is computed while the model runs. Most of them take some microseconds a token, and the iteration
waits for them. A slow one is advanced on a thread of low priority, callers in turn, and has no row until it is done.

Axes: R of the rows, V tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Several
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.constraints import Grammar, Matcher, allowed_tokens
from elman_server.scheduling.fair_executor import FairExecutor
from elman_server.scheduling.isolation import log_defect, try_each
from elman_server.scheduling.policy import SchedulingPolicy


@dataclass(eq=False)
class ConstrainedRow:
    """The progress of one row.

    Attributes:
        matcher: its grammar's matcher.
        caller: who it runs for.
        slow: whether its last token took long.
        work: if it is advanced apart, what it allows next, bool [V], once that is known.
        is_defective: whether it has met a defect.
        is_released: whether its result is not wanted any more.
    """

    matcher: Matcher
    caller: str
    slow: bool = False
    work: Future[NDArray[np.bool_]] | None = None
    is_defective: bool = False
    is_released: bool = False


@dataclass(frozen=True)
class _Batch:
    """Rows that are computed together.

    Attributes:
        rows: N rows.
        allowed: bool [N, V], what they allow, once `end` is done.
        end: when it has been computed.
    """

    rows: list[ConstrainedRow]
    allowed: NDArray[np.bool_]
    end: Future[None] = field(compare=False)


class ConstrainedRows:
    """Implements `RowStore` for the rows with a grammar, by their numbers in the batch.

    Args:
        name: the model's name, for the log.
        policy: the thresholds.
        vocabulary_size: V.
    """

    def __init__(self, name: str, policy: SchedulingPolicy, vocabulary_size: int) -> None:
        self._name = name
        self._policy = policy
        self._vocabulary_size = vocabulary_size
        self._rows: dict[int, ConstrainedRow] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._slow_thread = FairExecutor("slow grammars")
        self._batch: _Batch | None = None
        self._suspect_from = 0.0  # by `time.perf_counter`

    def append(
        self, row: int, grammar: Grammar, generated: NDArray[np.int64], caller: str, matcher: Matcher | None = None
    ) -> None:
        """Add a row.

        Args:
            row: its number.
            grammar: what its text has to match.
            generated: int64 [tokens], what it has generated before it was interrupted.
            caller: who it runs for.
            matcher: one that has accepted these tokens already.
        """
        one = self._rows[row] = ConstrainedRow(matcher or grammar.start(), caller)
        if matcher is None and len(generated):
            self._advance_apart(one, generated.tolist())

    def release(self, row: int) -> None:
        one = self._rows.pop(row, None)
        if one is not None:
            one.is_released = True

    def move(self, source: int, destination: int) -> None:
        if source in self._rows:
            self._rows[destination] = self._rows.pop(source)

    def get(self, row: int) -> ConstrainedRow | None:
        """Return a row; None if it has no grammar."""
        return self._rows.get(row)

    def pending(self) -> dict[int, Future[NDArray[np.bool_]]]:
        """Return the rows that cannot choose yet, and what they wait for."""
        return {row: one.work for row, one in self._rows.items() if row >= 0 and one.work and not one.work.done()}

    def prepare(self, rows: Several[int]) -> None:
        """Start to compute what the grammars of `rows`, which choose next, allow. Work that was started before and not
        used, because a run failed, is started again."""
        self._batch = None
        together = [one for row in rows if (one := self._rows.get(row)) is not None and one.work is None]
        if together:
            allowed = np.empty((len(together), self._vocabulary_size), np.bool_)
            self._batch = _Batch(together, allowed, self._thread.submit(self._find_allowed, together, allowed))

    def take(self, rows: Several[int]) -> NDArray[np.bool_] | None:
        """Return what the grammars of `rows` allow, bool [R, V]; None if none of them has one."""
        batch, self._batch = self._batch, None
        found = [self._rows.get(row) for row in rows]
        if not any(found):
            return None
        if batch is not None:
            batch.end.result()
            if batch.rows == found:
                return batch.allowed
        allowed = np.ones((len(rows), self._vocabulary_size), np.bool_)
        together = {one: number for number, one in enumerate(batch.rows)} if batch else {}
        for index, one in enumerate(found):
            if one is not None and one.work is not None:
                allowed[index], one.work = one.work.result(), None
            elif one is not None and batch is not None:
                allowed[index] = batch.allowed[together[one]]
        return allowed

    def accept(self, row: int, token: int) -> ConstrainedRow:
        """Add the token that a row has chosen. For a slow one, what follows from it is known later."""
        one = self._rows[row]
        if one.slow:
            self._advance_apart(one, [token])
            return one
        started = time.thread_time()
        try:
            one.matcher.accept(token)
        except Exception:
            log_defect(self._name)
            one.is_defective = True
        one.slow = one.slow or time.thread_time() - started > self._policy.slow_constraint_seconds
        return one

    def _find_allowed(self, rows: list[ConstrainedRow], allowed: NDArray[np.bool_]) -> None:
        """What rows allow, bool [N, V]: nothing where one meets a defect."""
        started = time.perf_counter()
        matchers = [one.matcher for one in rows]
        try:
            allowed_tokens(matchers, allowed)
        except Exception:
            indices = range(len(rows))
            _, failed = try_each(
                self._name, indices, lambda index: allowed_tokens([matchers[index]], allowed[index : index + 1])
            )
            allowed[failed] = False
            for index in failed:
                rows[index].is_defective = True
        now, policy = time.perf_counter(), self._policy
        limit = policy.suspect_constraints_seconds + len(rows) * policy.suspect_constraints_row_seconds
        # The time includes that of other threads, so that constraints are suspected now and then only.
        if now - started > limit and now > self._suspect_from:
            self._suspect_from = now + policy.suspect_interval_seconds
            for one in rows:  # Which of them it was shows when each is advanced apart.
                one.slow = True

    def _advance_apart(self, one: ConstrainedRow, tokens: list[int]) -> None:
        one.work = self._slow_thread.submit(one.caller, lambda: self._advance(one, tokens))

    def _advance(self, one: ConstrainedRow, tokens: list[int]) -> NDArray[np.bool_]:
        """Add tokens; returns what may follow, bool [V]: nothing where it meets a defect."""
        allowed: NDArray[np.bool_] = np.zeros((1, self._vocabulary_size), np.bool_)
        try:
            for token in tokens:
                if one.is_released:
                    break
                one.matcher.accept(token, apart=True)
            started = time.thread_time()
            if not one.matcher.is_exhausted and not one.is_released:
                allowed_tokens([one.matcher], allowed)
            one.slow = time.thread_time() - started > self._policy.slow_constraint_seconds
            if one.slow:
                self._suspect_from = 0.0
        except Exception:
            log_defect(self._name)
            one.is_defective = True
        return allowed.reshape(-1)
