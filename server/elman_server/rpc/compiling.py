"""Constraints compiled off the event loop, on one thread of their own: what takes long keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from elman_server.decoding.constraints import Constraint, Grammar, Grammars
from elman_server.errors import QueueFullError
from elman_server.rpc.models import ServedModel

_MOST_WAITING = 64  # different constraints; at two seconds each, the worst, for two minutes


class Compiling:
    """Compiles the constraints of a server's requests, for all models one after the other. `close` ends it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._grammars: dict[str, Grammars] = {}  # by the model's name; made on the thread
        self._waiting: Counter[tuple[str, Constraint]] = Counter()

    async def compile(self, model: ServedModel, constraint: Constraint) -> Grammar:
        """The grammar of a constraint, at once where it is kept. A call that is cancelled gives its place up.

        Raises:
            ConstraintError: there is none such.
            QueueFullError: too many others wait.
        """
        grammars = self._grammars.get(model.name)
        kept = grammars.kept(constraint) if grammars else None
        return kept or await self._on_thread(model, constraint)

    def close(self) -> None:
        """Compile nothing any more; waits for what is under way, some seconds at worst."""
        self._thread.shutdown(cancel_futures=True)

    async def _on_thread(self, model: ServedModel, constraint: Constraint) -> Grammar:
        wanted = (model.name, constraint)
        if wanted not in self._waiting and len(self._waiting) >= _MOST_WAITING:
            raise QueueFullError("constraint to compile", _MOST_WAITING)
        self._waiting[wanted] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, model, constraint)
        finally:
            self._waiting[wanted] -= 1
            if not self._waiting[wanted]:
                del self._waiting[wanted]

    def _compile(self, model: ServedModel, constraint: Constraint) -> Grammar:
        if model.name not in self._grammars:
            self._grammars[model.name] = Grammars(model.vocabulary.token_bytes(), model.end_token)
        return self._grammars[model.name].compile(constraint)
