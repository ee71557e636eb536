"""Compiling the constraints of requests: off the event loop, on one thread, so that other calls do not wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from elman_server.decoding.constraints import Constraint, Grammar, Grammars
from elman_server.decoding.host.shaping import Shaping
from elman_server.errors import InvalidFieldError, QueueFullError
from elman_server.inference.model import ServedModel

_MAX_WAITING = 64  # different constraints; at two seconds each, the worst, for two minutes
_CHECKED_TOKENS = 256  # forced tokens; a mistake further on is found when the generation comes to it


class GrammarCompiler:
    """Compiles constraints, for all models one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._grammars: dict[str, Grammars] = {}  # by the model's name; made on the thread
        self._waiting: Counter[tuple[str, Constraint]] = Counter()

    async def compile(self, model: ServedModel, constraint: Constraint, shaping: Shaping | None) -> Grammar:
        """Return the grammar of a constraint, immediately if it is cached. A call that is cancelled gives up its place.

        Args:
            model: the model whose text must match.
            constraint: what the text must match.
            shaping: holds the tokens that the text begins with, if any.

        Raises:
            ConstraintError: there is no such grammar.
            InvalidFieldError: it allows no text, or not the forced tokens.
            QueueFullError: too many other constraints wait.
        """
        grammars = self._grammars.get(model.name)
        kept = grammars.kept(constraint) if grammars else None
        grammar = kept or await self._on_thread(model, constraint)
        if grammar.matches_empty_only:
            got = "an expression that matches the empty text only"
            raise InvalidFieldError("constraint", got, "it lets this model generate nothing")
        if shaping is not None and shaping.forced_tokens:
            await asyncio.to_thread(_check_forced, shaping.forced_tokens[:_CHECKED_TOKENS], grammar)
        return grammar

    def close(self) -> None:
        """Accept no more constraints; waits for the one that is being compiled, some seconds at worst."""
        self._thread.shutdown(cancel_futures=True)

    async def _on_thread(self, model: ServedModel, constraint: Constraint) -> Grammar:
        key = (model.name, constraint)
        if key not in self._waiting and len(self._waiting) >= _MAX_WAITING:
            raise QueueFullError("constraint to compile", _MAX_WAITING)
        self._waiting[key] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, model, constraint)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    def _compile(self, model: ServedModel, constraint: Constraint) -> Grammar:
        if model.name not in self._grammars:
            self._grammars[model.name] = Grammars(model.vocabulary.token_bytes(), model.end_token)
        return self._grammars[model.name].compile(constraint)


def _check_forced(tokens: tuple[int, ...], grammar: Grammar) -> None:
    matcher = grammar.start()
    for token in tokens:
        matcher.accept(token)
        if matcher.is_exhausted:
            return
        if matcher.error is not None:
            rule = f"the constraint excludes it: {matcher.error}"
            raise InvalidFieldError("shaping.forced_token_ids", f"token {token}", rule)
