"""Compilation of constraints over one vocabulary, and a cache of the results."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from queue import LifoQueue
from typing import TypeVar
from weakref import WeakValueDictionary

from elman_server.decoding.constraints.constraint import Constraint
from elman_server.decoding.constraints.matching import Grammar
from elman_server.decoding.constraints.memory import GrammarMemory
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
        memory: bounds what the grammars take; by default one of their own.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        end_token: int | None,
        concurrency: int = 1,
        memory: GrammarMemory | None = None,
    ) -> None:
        self._vocabulary = MatcherVocabulary(token_bytes, end_token)
        # The one that was used last is used next, so that a second process starts only when it is needed.
        self._sandboxes: LifoQueue[CompilationSandbox] = LifoQueue()
        for _ in range(concurrency):
            self._sandboxes.put(CompilationSandbox())
        self._memory = memory or GrammarMemory()
        self._memory.register(self)
        self._lock = threading.Lock()
        # Least recently used first.
        self._grammars: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._in_use: WeakValueDictionary[Constraint, Grammar] = WeakValueDictionary()  # those in the cache, too
        self._refusals: OrderedDict[Constraint, tuple[str, int | None]] = OrderedDict()  # problem and position

    def compile(self, constraint: Constraint) -> Grammar:
        """Return the grammar of a constraint. Blocks for milliseconds unless it is cached, at worst for seconds; other
        threads run meanwhile.

        Raises:
            ConstraintError: the expression is invalid or too complex, or no output of the model can match it.
            ConstraintMemoryError: other grammars take too much memory.
        """
        cached = self.kept(constraint)
        if cached is not None:
            return cached
        text = constraint.grammar()
        sandbox = self._sandboxes.get()
        try:
            trial = sandbox.try_out(text)
        finally:
            self._sandboxes.put(sandbox)
        if trial.error == KILLED:
            raise constraint.error(trial.error)
        try:
            if trial.error:
                raise constraint.error(trial.error)
            with self._memory.reserved(trial.size):
                grammar = Grammar(self._vocabulary, constraint, text, trial.size)
            self._memory.add(grammar)
        except ConstraintError as error:
            with self._lock:
                self._keep(self._refusals, constraint, (error.problem, error.position))
            raise
        with self._lock:
            self._in_use[constraint] = grammar
            self._keep(self._grammars, constraint, grammar)
        return grammar

    def kept(self, constraint: Constraint) -> Grammar | None:
        """Return the grammar of a constraint if it is cached or in use; does not block.

        Raises:
            ConstraintError: its refusal is cached.
        """
        with self._lock:
            if constraint in self._refusals:
                self._refusals.move_to_end(constraint)
                raise ConstraintError(*self._refusals[constraint])
            grammar = self._in_use.get(constraint)
            if constraint in self._grammars:
                self._grammars.move_to_end(constraint)
            elif grammar is not None:
                self._keep(self._grammars, constraint, grammar)
            return grammar

    @property
    def size(self) -> int:
        """The bytes of the cached grammars."""
        with self._lock:
            return sum(grammar.size for grammar in self._grammars.values())

    def drop_oldest(self) -> bool:
        """Drop the cached grammar that was used least recently; returns whether there was one."""
        with self._lock:
            if self._grammars:
                self._grammars.popitem(last=False)
                return True
            return False

    def _keep(self, cache: OrderedDict[Constraint, _Result], constraint: Constraint, result: _Result) -> None:
        """Add something to a cache, under the lock."""
        cache[constraint] = result
        if len(cache) > _CACHED:
            cache.popitem(last=False)
