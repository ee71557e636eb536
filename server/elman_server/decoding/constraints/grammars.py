"""Compilation of constraints over one vocabulary, and a cache of the results."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from queue import LifoQueue
from typing import TypeVar

from elman_server.decoding.constraints.constraint import Constraint
from elman_server.decoding.constraints.matching import Grammar
from elman_server.decoding.constraints.sandbox import KILLED, CompilationSandbox
from elman_server.decoding.constraints.vocabulary import MatcherVocabulary
from elman_server.errors import ConstraintError

_CACHED = 32  # grammars, and as many refusals

_Result = TypeVar("_Result")


class Grammars:
    """Compiles constraints over one vocabulary; caches the grammars and the refusals that were used last. Thread-safe.

    Args:
        token_bytes: see `MatcherVocabulary`.
        end_token: see `MatcherVocabulary`.
        concurrency: how many constraints may be compiled at the same time; further ones wait.
    """

    def __init__(self, token_bytes: Sequence[bytes | None], end_token: int | None, concurrency: int = 1) -> None:
        self._vocabulary = MatcherVocabulary(token_bytes, end_token)
        # The one that was used last is used next, so that a second process starts only when it is needed.
        self._sandboxes: LifoQueue[CompilationSandbox] = LifoQueue()
        for _ in range(concurrency):
            self._sandboxes.put(CompilationSandbox())
        self._lock = threading.Lock()
        # Least recently used first.
        self._grammars: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._refusals: OrderedDict[Constraint, tuple[str, int | None]] = OrderedDict()  # problem and position

    def compile(self, constraint: Constraint) -> Grammar:
        """Return the grammar of a constraint. Blocks for milliseconds unless it is cached, at worst for seconds; other
        threads run meanwhile.

        Raises:
            ConstraintError: the expression is invalid or too complex, or no output of the model can match it.
        """
        cached = self.kept(constraint)
        if cached is not None:
            return cached
        text = constraint.grammar()
        sandbox = self._sandboxes.get()
        try:
            message = sandbox.error_of(text)
        finally:
            self._sandboxes.put(sandbox)
        if message == KILLED:
            raise constraint.error(message)
        try:
            if message:
                raise constraint.error(message)
            grammar = Grammar(self._vocabulary, constraint, text)
        except ConstraintError as error:
            self._store(self._refusals, constraint, (error.problem, error.position))
            raise
        self._store(self._grammars, constraint, grammar)
        return grammar

    def kept(self, constraint: Constraint) -> Grammar | None:
        """Return the grammar of a constraint if it is cached; does not block.

        Raises:
            ConstraintError: its refusal is cached.
        """
        with self._lock:
            if constraint in self._refusals:
                self._refusals.move_to_end(constraint)
                raise ConstraintError(*self._refusals[constraint])
            if constraint in self._grammars:
                self._grammars.move_to_end(constraint)
                return self._grammars[constraint]
            return None

    def _store(self, cache: OrderedDict[Constraint, _Result], constraint: Constraint, result: _Result) -> None:
        with self._lock:
            cache[constraint] = result
            if len(cache) > _CACHED:
                cache.popitem(last=False)
