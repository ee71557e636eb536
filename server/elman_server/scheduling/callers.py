"""The caller of a sequence. Callers share what a model has a limited number of, such as slots."""

from __future__ import annotations

from contextvars import ContextVar

# Set by the door through which a call arrives. A sequence belongs to the caller of the call in which it is made.
current_caller: ContextVar[str] = ContextVar("current_caller", default="")


def has_room(own: int, total: int, callers: int, limit: int) -> bool:
    """Whether a caller may have one more of something that callers share.

    Where the limit is reached, a caller with less than an even share may still add to its own, so that no caller can
    exclude the others.

    Args:
        own: how many the caller has.
        total: how many there are.
        callers: the number of callers that have one, this one included.
        limit: how many there may be.
    """
    return total < limit or own < limit // callers
