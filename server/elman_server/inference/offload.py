"""Work whose duration grows with the request: short work runs on the event loop, long work on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

LONG = 2000  # characters, tokens or labels: more take milliseconds, too long to block the event loop

_Result = TypeVar("_Result")


async def offload(length: int, work: Callable[[], _Result], long: int = LONG) -> _Result:
    """Run some work on a thread if it is long, else on the event loop.

    Args:
        length: size of what the work goes through.
        work: the work.
        long: the size from which it runs on a thread.
    """
    return work() if length < long else await asyncio.to_thread(work)
