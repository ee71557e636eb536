"""Questions to the store that go together: while some are being asked, the next ones gather."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Gathering(Generic[Q, A]):
    """Has many ask at the price of one: a way to the store and back costs more than what is asked there. Lives on one
    event loop.

    Args:
        ask: questions of one kind; blocks. Returns the answer to each, or the error that it is, in order.
    """

    def __init__(self, ask: Callable[[Sequence[Q]], Sequence[A | Exception]]) -> None:
        self._ask = ask
        self._gathered: list[tuple[Q, asyncio.Future[A]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def answer(self, question: Q) -> A:
        """What the store says.

        Raises:
            Exception: what `ask` raises, or what it returns for this question.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Future[A] = loop.create_future()
        self._gathered.append((question, told))
        if self._asking is None:
            self._asking = loop.create_task(self._go())
        return await told

    async def _go(self) -> None:
        try:
            while self._gathered:
                asked, self._gathered = self._gathered, []
                answers: Sequence[A | Exception]
                try:
                    answers = await asyncio.to_thread(self._ask, [question for question, _ in asked])
                except Exception as error:
                    answers = [error] * len(asked)
                for (_, told), answer in zip(asked, answers, strict=True):
                    if told.cancelled():
                        continue
                    if isinstance(answer, Exception):
                        told.set_exception(answer)
                    else:
                        told.set_result(answer)
        finally:
            self._asking = None
