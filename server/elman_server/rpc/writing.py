"""Sending the messages of a stream: of a size that may be, to a client that may not read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

from elman_server.errors import ClientTooSlowError
from elman_server.rpc.callers import Context

_Part = TypeVar("_Part", bound=Message)
_LOOKS = 8  # in the time that a client has
_FRAME_BYTES = 6  # what a part takes in its message beside its own bytes, at most


class Writer:
    """Sends messages, and gives up on clients that leave one unread. For one event loop.

    All writes under way are looked at now and then: a timer for each would cost as much as a tenth of a message.

    Args:
        timeout: seconds that a client may leave a message unread, about; an eighth more at most.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._since: dict[asyncio.Task[Any], float] = {}  # when each write under way began, the first first
        self._given_up: set[asyncio.Task[Any]] = set()
        self._watching = False

    async def write(self, context: Context, message: Message) -> None:
        """Send a message; one at a time for each task.

        Args:
            context: the call.
            message: one of its responses.

        Raises:
            ClientTooSlowError: the client does not read, and is given up on.
        """
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = time.monotonic()
        if not self._watching:
            self._watching = True
            self._look_later()
        try:
            await context.write(message)
        except asyncio.CancelledError as error:
            # Somebody else may have cancelled it, too: then it is cancelled.
            if task in self._given_up and not task.uncancel():
                raise ClientTooSlowError(self._timeout) from error
            raise
        finally:
            del self._since[task]
            self._given_up.discard(task)

    def _look_later(self) -> None:
        asyncio.get_running_loop().call_later(self._timeout / _LOOKS, self._look)

    def _look(self) -> None:
        """Give up on those who have taken too long."""
        latest = time.monotonic() - self._timeout
        for task, since in self._since.items():
            if since > latest:
                break
            if task not in self._given_up:
                self._given_up.add(task)
                task.cancel()
        self._watching = bool(self._since)
        if self._watching:
            self._look_later()


def grouped(parts: Iterable[_Part], most: int) -> Iterator[list[_Part]]:
    """Parts in their order, as many together as have `most` bytes; one at least."""
    group: list[_Part] = []
    size = 0
    for part in parts:
        more = part.ByteSize() + _FRAME_BYTES
        if group and size + more > most:
            yield group
            group, size = [], 0
        group.append(part)
        size += more
    if group:
        yield group
