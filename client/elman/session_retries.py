"""Calls on sessions: what identifies them, and for how long a broken one is retried."""

from __future__ import annotations

import secrets
import time

import grpc

from elman.errors import DeadlineExceededError, ElmanError, UnavailableError
from elman_protos import v1

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds
_QUEUE_FULL = "QUEUE_FULL"  # the reason of a server to which all clients reconnect at the same time
_SHORTEST_TIMEOUT = 0.001  # seconds; grpc takes 0 as no limit


class RetryBudget:
    """The time for which a broken call is retried, within the time limit of the caller.

    The time starts with the first failure since the last progress and not with the progress itself, so a caller that
    reads slowly does not use it up. General retry libraries do not renew a budget with the progress of a stream.

    Args:
        seconds: the time for retries; 0 for none.
        timeout: the time limit for the whole call, in seconds; None for no limit.
    """

    def __init__(self, seconds: float, timeout: float | None) -> None:
        self._seconds = seconds
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failing_since: float | None = None
        self._pause = _FIRST_PAUSE

    @property
    def timeout(self) -> float | None:
        """The time limit for the next attempt, in seconds."""
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), _SHORTEST_TIMEOUT)

    def renew(self) -> None:
        """Restore the budget, because the call has made progress."""
        self._failing_since = None
        self._pause = _FIRST_PAUSE

    def pause_after(self, error: ElmanError) -> float:
        """The seconds to wait before the next attempt.

        Raises:
            ElmanError: the given error, if the budget is used up or a retry cannot help.
            DeadlineExceededError: the time limit of the caller has passed.
        """
        if not (isinstance(error, UnavailableError) or error.reason == _QUEUE_FULL):
            raise error
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + self._seconds - now
        if left <= 0:
            raise error
        if self._deadline is not None:
            if now >= self._deadline:
                message = f"the time limit of the call has passed, and its last attempt failed: {error}"
                raise DeadlineExceededError(message, code=grpc.StatusCode.DEADLINE_EXCEEDED) from error
            left = min(left, self._deadline - now)
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return min(pause, left)


def session_call(session: str, position: int | None, request_id: str, patience: float) -> v1.SessionCall | None:
    """The part of a request that identifies a call on a session; None for a call without one.

    A call that may be retried has a request id, so that the server does not run it twice.

    Raises:
        ValueError: an argument needs a session.
    """
    if session:
        return v1.SessionCall(
            session_id=session, position=position, request_id=request_id or (new_id() if patience > 0 else "")
        )
    if position is not None or request_id or patience > 0:
        raise ValueError("position, request_id and patience need a session")
    return None


def new_id() -> str:
    """A random id for a session or a call."""
    return secrets.token_hex(8)


def position_of(message: v1.GenerateStarted | v1.GenerateFinished | v1.ClassifyResponse | v1.PieceResult) -> int | None:
    """The position of the session in a response; None for a call without one."""
    return message.session_position if message.HasField("session_position") else None
