"""Stopping a run with Ctrl-C or SIGTERM after the step in progress."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """True once Ctrl-C or SIGTERM has arrived. A second signal raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self._requested = False

    def __bool__(self) -> bool:
        return self._requested

    def request(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Handle the signals within the context, and restore the handlers after it."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption.request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, old in before.items():
            signal.signal(number, old)
