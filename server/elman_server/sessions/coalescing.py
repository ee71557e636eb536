"""Coalescing of requests to a store: while one round trip is under way, the next requests are collected for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from elman_server.errors import SessionError
from elman_server.sessions.isolation import send_isolated

Q = TypeVar("Q")
A = TypeVar("A")


class Coalescer(Generic[Q, A]):
    """Sends requests of one kind in batches, because a round trip costs more than what it asks for. Bound to one event
    loop.

    Args:
        send: answers a batch of requests; blocks. Returns an answer or an error for each, in order.
    """

    def __init__(self, send: Callable[[Sequence[Q]], Sequence[A | Exception]]) -> None:
        self._send = send
        self._pending: list[tuple[Q, asyncio.Future[A]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def request(self, request: Q) -> A:
        """Send a request; return its answer.

        Raises:
            SessionError: the error that `send` raises, or returns for this request; StoreUnavailableError for a defect.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._pending.append((request, future))
        if self._sender is None:
            self._sender = loop.create_task(self._send_pending())
        return await future

    async def _send_pending(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                answers = await asyncio.to_thread(
                    send_isolated, self._send, [request for request, _ in batch], SessionError
                )
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.cancelled():
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._sender = None
