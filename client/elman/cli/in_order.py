"""Asking about many things at once and answering in their order: the server runs what is under way as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import TypeVar

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

_UNDER_WAY = 64


async def answer_in_order(
    asked: AsyncIterable[_Asked], ask: Callable[[_Asked], Awaitable[_Answer]], show: Callable[[_Asked, _Answer], None]
) -> None:
    """Ask about everything that comes, some of it at once, and show the answers in its order as soon as they are there.

    Raises:
        Exception: what the first that failed has raised, when those before it have been shown.
    """
    room = asyncio.Semaphore(_UNDER_WAY)
    sent: asyncio.Queue[tuple[_Asked, asyncio.Future[_Answer]] | None] = asyncio.Queue()
    under_way: deque[asyncio.Future[_Answer]] = deque()

    async def send() -> None:
        try:
            async for one in asked:
                await room.acquire()
                under_way.append(asyncio.ensure_future(ask(one)))
                sent.put_nowait((one, under_way[-1]))
        finally:
            sent.put_nowait(None)

    sending = asyncio.create_task(send())
    try:
        while (answer := await sent.get()) is not None:
            show(answer[0], await answer[1])
            under_way.popleft()
            room.release()
        await sending
    finally:
        sending.cancel()
        for asking in under_way:
            asking.cancel()
        await asyncio.gather(sending, *under_way, return_exceptions=True)
