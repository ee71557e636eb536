"""Who a sequence runs for. The callers of a model share its slots."""

from __future__ import annotations

from contextvars import ContextVar

# Set by the door that a call has come through; a sequence is its caller's wherever in that call it is made.
current_caller: ContextVar[str] = ContextVar("current_caller", default="")


def has_room(own: int, total: int, callers: int, limit: int) -> bool:
    """Whether a caller may have one more of something that callers share.

    Where the limit is reached, a caller with less than an even share may still add to its own, so that one who has
    taken everything keeps nobody out.

    Args:
        own: how many the caller has.
        total: how many there are.
        callers: the number of callers that have one, this one included.
        limit: how many there may be.
    """
    return total < limit or own < limit // callers
