"""Sending messages to a client that may not read them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextvars import ContextVar
from typing import Any

from google.protobuf.message import Message

from elman_server.errors import ClientTooSlowError, QueueFullError
from elman_server.rpc.transport.activity import activity
from elman_server.rpc.transport.callers import Context
from elman_server.scheduling.callers import current_caller, has_room

_CHECKS_PER_TIMEOUT = 8
_SMALL_BYTES = 2**16  # of a message that is not counted: about as much as a client takes without reading
_MAX_UNREAD = 2**28  # bytes of other messages

# The write of the call being answered that was cut off. Until it ends, gRPC accepts no further operation of the call.
unfinished_write: ContextVar[asyncio.Future[None] | None] = ContextVar("unfinished_write", default=None)


class UnreadBytes:
    """Counts the bytes of messages that have not been read. They stay in gRPC's memory until the client reads them or
    disconnects, also after the end of the call."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()  # by caller

    def add(self, caller: str, size: int) -> None:
        """Count a message.

        Raises:
            QueueFullError: this caller, or all together, leave too much unread.
        """
        callers = len(self._bytes.keys() | {caller})
        if not has_room(self._bytes[caller] + size, self._bytes.total() + size, callers, _MAX_UNREAD):
            raise QueueFullError("byte of unread answers", _MAX_UNREAD)
        self._bytes[caller] += size

    def remove(self, caller: str, size: int) -> None:
        """A message has been read, or its client has gone."""
        self._bytes[caller] -= size
        if not self._bytes[caller]:
            del self._bytes[caller]


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
        self._unread = UnreadBytes()

    async def write(self, context: Context, message: Message) -> None:
        """Send a message; one at a time for each task.

        Args:
            context: the call.
            message: one of its responses.

        Raises:
            ClientTooSlowError: the client has not read it in time.
            QueueFullError: so much is unread that it is not sent.
        """
        size = message.ByteSize()
        if size <= _SMALL_BYTES:
            await self._write(context, message)
            return
        caller = current_caller.get()
        self._unread.add(caller, size)
        try:
            await self._write(context, message)
        except BaseException:
            # The stub takes a class of its own for the callback.
            context.add_done_callback(lambda _: self._unread.remove(caller, size))  # type: ignore[arg-type]
            raise
        self._unread.remove(caller, size)

    async def _write(self, context: Context, message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._started[task] = time.monotonic()
        if not self._watching:
            self._watching = True
            self._schedule_check()
        write = asyncio.ensure_future(context.write(message))
        try:
            await asyncio.shield(write)
            active = activity.get()
            if active is not None:
                active.note()
        except asyncio.CancelledError as error:
            unfinished_write.set(write)
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
