"""Work that grows with what a client has sent: done at once where that is short, else on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

LONG = 2000  # characters, tokens or labels: more take milliseconds, which the other clients shall not wait for

_Result = TypeVar("_Result")


async def by_length(length: int, work: Callable[[], _Result], long: int = LONG) -> _Result:
    """Do some work, on a thread where it is long.

    Args:
        length: of what it goes through.
        work: what to do.
        long: the length from which on it is.
    """
    return work() if length < long else await asyncio.to_thread(work)
