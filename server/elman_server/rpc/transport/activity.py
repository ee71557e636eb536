"""When a call was last active: a message has arrived, or one has been read by its client."""

from __future__ import annotations

import time
from contextvars import ContextVar


class Activity:
    """The last activity of a call.

    Attributes:
        last: when it was, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.last = time.monotonic()

    def note(self) -> None:
        """The call is active now."""
        self.last = time.monotonic()


# Of the call that is being answered; set by the interceptor where the client sends a stream.
activity: ContextVar[Activity | None] = ContextVar("activity", default=None)
