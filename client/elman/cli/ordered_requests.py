"""Concurrent requests with answers in order: the server runs the requests in progress as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

_CONCURRENT = 64


async def answer_in_order(
    items: AsyncIterable[_Item], request: Callable[[_Item], Awaitable[_Answer]], show: Callable[[_Item, _Answer], None]
) -> None:
    """Send a request for each item, up to 64 at a time, and show the answers in the order of the items.

    Args:
        items: the items, as they arrive.
        request: requests the answer for an item.
        show: called with each item and its answer, as soon as all before it have been shown.

    Raises:
        Exception: the exception of the first item that failed, after the answers before it have been shown.
    """
    slots = asyncio.Semaphore(_CONCURRENT)
    sent: asyncio.Queue[tuple[_Item, asyncio.Future[_Answer]] | None] = asyncio.Queue()
    in_progress: deque[asyncio.Future[_Answer]] = deque()

    async def send() -> None:
        try:
            async for item in items:
                await slots.acquire()
                in_progress.append(asyncio.ensure_future(request(item)))
                sent.put_nowait((item, in_progress[-1]))
        finally:
            sent.put_nowait(None)

    sending = asyncio.create_task(send())
    try:
        while (entry := await sent.get()) is not None:
            item, answer = entry
            show(item, await answer)
            in_progress.popleft()
            slots.release()
        await sending
    finally:
        sending.cancel()
        for answer in in_progress:
            answer.cancel()
        await asyncio.gather(sending, *in_progress, return_exceptions=True)
