"""Sending the messages of a stream to a client that may not read them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.protobuf.message import Message

from elman_server.errors import ClientTooSlowError
from elman_server.rpc.transport.callers import Context

_CHECKS_PER_TIMEOUT = 8


class Writer:
    """Sends messages, and ends the call of a client that leaves one unread. For one event loop.

    All pending writes are checked periodically: a timer for each would cost a tenth of a message.

    Args:
        timeout: seconds for which a client may leave a message unread; an eighth more at most.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._started: dict[asyncio.Task[Any], float] = {}  # when each pending write began, the oldest first
        self._timed_out: set[asyncio.Task[Any]] = set()
        self._watching = False

    async def write(self, context: Context, message: Message) -> None:
        """Send a message; one at a time for each task.

        Args:
            context: the call.
            message: one of its responses.

        Raises:
            ClientTooSlowError: the client has not read it in time.
        """
        task = asyncio.current_task()
        assert task is not None
        self._started[task] = time.monotonic()
        if not self._watching:
            self._watching = True
            self._schedule_check()
        try:
            await context.write(message)
        except asyncio.CancelledError as error:
            # The task may have been cancelled for another reason as well: then it stays cancelled.
            if task in self._timed_out and not task.uncancel():
                raise ClientTooSlowError(self._timeout) from error
            raise
        finally:
            del self._started[task]
            self._timed_out.discard(task)

    def _schedule_check(self) -> None:
        asyncio.get_running_loop().call_later(self._timeout / _CHECKS_PER_TIMEOUT, self._check)

    def _check(self) -> None:
        """Cancel the writes that have taken too long."""
        latest = time.monotonic() - self._timeout
        for task, started in self._started.items():
            if started > latest:
                break
            if task not in self._timed_out:
                self._timed_out.add(task)
                task.cancel()
        self._watching = bool(self._started)
        if self._watching:
            self._schedule_check()
