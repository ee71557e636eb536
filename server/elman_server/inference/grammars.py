"""Compiling the constraints of requests: off the event loop, and those of a caller one after the other, so that other
callers do not wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

from elman_server.decoding.constraints import Constraint, Grammar, Grammars
from elman_server.decoding.constraints.memory import GrammarMemory
from elman_server.decoding.host.shaping import Shaping
from elman_server.errors import InvalidFieldError, QueueFullError
from elman_server.inference.model import ServedModel
from elman_server.scheduling.callers import current_caller, has_room
from elman_server.scheduling.fair_executor import lower_priority

_MAX_WAITING = 64  # different constraints; at two seconds each, the worst, for two minutes
_MAX_RUNNING = 2  # that are compiled at the same time
_TRIM_SECONDS = 10.0  # between two looks at what idle grammars take
_CHECKED_TOKENS = 256  # forced tokens; a mistake further on is found when the generation comes to it


class GrammarCompiler:
    """Compiles constraints, for all models."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_RUNNING, thread_name_prefix="constraints", initializer=lower_priority)
        self._grammars: dict[str, Grammars] = {}  # by the model's name
        self._waiting: dict[str, Counter[tuple[str, Constraint]]] = {}  # by the caller
        self._memory = GrammarMemory()
        self._trimming: asyncio.TimerHandle | None = None
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by the caller

    @property
    def waiting_count(self) -> int:
        """The number of different constraints of each caller that wait or are compiled, for all callers together."""
        return sum(map(len, self._waiting.values()))

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
            ConstraintMemoryError: the constraints of other requests take too much memory.
        """
        self._trim_later()
        grammars = self._grammars.get(model.name)
        kept = grammars.kept(constraint) if grammars else None
        grammar = kept or await self._in_turn(model, constraint)
        if grammar.matches_empty_only:
            got = "an expression that matches the empty text only"
            raise InvalidFieldError("constraint", got, "it lets this model generate nothing")
        if shaping is not None and shaping.forced_tokens:
            await asyncio.to_thread(_check_forced, shaping.forced_tokens[:_CHECKED_TOKENS], grammar)
        return grammar

    def close(self) -> None:
        """Accept no more constraints; waits for those that are being compiled, some seconds at worst."""
        if self._trimming is not None:
            self._trimming.cancel()
        self._threads.shutdown(cancel_futures=True)

    def _trim_later(self) -> None:
        if self._trimming is None:
            self._trimming = asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        if self._memory.trim():  # What is in use now may be idle later.
            self._trim_later()

    async def _in_turn(self, model: ServedModel, constraint: Constraint) -> Grammar:
        key, caller = (model.name, constraint), current_caller.get()
        own, callers = self._waiting.get(caller, Counter()), self._waiting.keys() | {caller}
        if key not in own and not has_room(len(own), self.waiting_count, len(callers), _MAX_WAITING):
            raise QueueFullError("constraint to compile", _MAX_WAITING)
        self._waiting[caller] = own
        own[key] += 1
        try:
            async with self._turns.setdefault(caller, asyncio.Lock()):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._compile, model, constraint)
        finally:
            own[key] -= 1
            if not own[key]:
                del own[key]
            if not own:
                del self._waiting[caller]

    def _compile(self, model: ServedModel, constraint: Constraint) -> Grammar:
        if model.name not in self._grammars:
            grammars = Grammars(model.vocabulary.token_bytes(), model.end_token, _MAX_RUNNING, self._memory)
            self._grammars.setdefault(model.name, grammars)
        return self._grammars[model.name].compile(constraint)


def _check_forced(tokens: tuple[int, ...], grammar: Grammar) -> None:
    matcher = grammar.start()
    for token in tokens:
        complete = matcher.is_exhausted
        matcher.accept(token, apart=True)
        if matcher.error is not None:
            reason = "it is satisfied before and allows nothing more" if complete else matcher.error
            rule = f"the constraint excludes it: {reason}"
            raise InvalidFieldError("shaping.forced_token_ids", f"token {token}", rule)
