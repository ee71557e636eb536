"""The server's event loop, which says when it has nothing left to do.

A scheduler delivers events to the event loop and then waits, so that the loop has the interpreter and the cores while
it writes them to the clients and accepts new calls. How many rounds of the loop that takes depends on every `await` on
the way; that the loop is idle does not.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable


class ServerEventLoop(asyncio.SelectorEventLoop):
    """An event loop with `when_idle`."""

    def __init__(self) -> None:
        self._idle_selector = _IdleSelector()
        super().__init__(self._idle_selector)

    @classmethod
    def running(cls) -> ServerEventLoop:
        """Returns the running event loop.

        Raises:
            TypeError: it is another kind of loop.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, cls):
            raise TypeError(f"the server needs asyncio.Runner(loop_factory={cls.__name__}), got {type(loop).__name__}")
        return loop

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call once when no callback is ready and no input or output is pending. To be called on the loop's thread.

        Args:
            call: must be short, and must not raise.
        """
        self._idle_selector.idle_calls.append(call)


class _IdleSelector(selectors.DefaultSelector):
    """Calls back before it blocks.

    asyncio selects without blocking (a timeout of 0) while callbacks are ready, and blocks otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.idle_calls: list[Callable[[], object]] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.idle_calls and timeout != 0:
            events = super().select(0)
            if events:
                return events
            calls, self.idle_calls = self.idle_calls, []
            for call in calls:
                call()
        return super().select(timeout)
