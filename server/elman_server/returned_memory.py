"""Memory that is free is given back to the system: what a flood of large messages took would otherwise stay."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from pathlib import Path

_INTERVAL = 10.0  # seconds
_GROWTH_BYTES = 2**25  # below which nothing is done
_RESIDENT = 1  # the field of statm


async def return_memory() -> None:
    """Give free memory back whenever the process has grown, until cancelled. Only glibc keeps so much that it helps."""
    with contextlib.suppress(OSError, AttributeError):
        trim = ctypes.CDLL(None).malloc_trim
        before = _resident_bytes()
        while True:
            await asyncio.sleep(_INTERVAL)
            if _resident_bytes() > before + _GROWTH_BYTES:
                await asyncio.to_thread(trim, 0)
                before = _resident_bytes()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[_RESIDENT])
    return pages * os.sysconf("SC_PAGE_SIZE")
