"""Memory that is free is given back to the system: what a flood of large messages took would otherwise stay."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from pathlib import Path

_INTERVAL, _LONGEST_INTERVAL = 5.0, 40.0  # seconds
_GROWTH_BYTES = 2**25  # below which nothing is done
_RETURNED_BYTES = 2**20
_RESIDENT = 1  # the field of statm


def return_free_memory() -> None:
    """Give free memory back once. Only glibc keeps so much that this helps."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def return_memory() -> None:
    """Give free memory back while the process is larger than it was, until cancelled; less often where that does not
    help."""
    with contextlib.suppress(OSError):
        least = _resident_bytes()
        interval = _INTERVAL
        while True:
            await asyncio.sleep(interval)
            before = _resident_bytes()
            if before > least + _GROWTH_BYTES:
                await asyncio.to_thread(return_free_memory)
            after = _resident_bytes()
            least = min(least, after)
            interval = _INTERVAL if before - after > _RETURNED_BYTES else min(2 * interval, _LONGEST_INTERVAL)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[_RESIDENT])
    return pages * os.sysconf("SC_PAGE_SIZE")
