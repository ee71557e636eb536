"""What a call says about the session that it continues, and what may name a session or a call."""

from __future__ import annotations

import re

from elman_server.errors import InvalidFieldError, shortened
from elman_server.sessions import Target

MAX_REQUEST_ID_CHARACTERS = 64
_SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_call(target: Target | None, received_count: int, *, has_source: bool) -> None:
    """Check what a Generate request says about its session and about an earlier attempt.

    Args:
        target: the session and the call; None for none.
        received_count: tokens that the caller has from an earlier attempt.
        has_source: whether the request brings a source.

    Raises:
        InvalidFieldError: an id is missing or malformed, or something does not go with a session or without one.
    """
    if target is None:
        raise InvalidFieldError("received_token_count", received_count, "only a call in a session can be repeated")
    check_target(target)
    if received_count < 0:
        raise InvalidFieldError("received_token_count", received_count, "must not be negative")
    if received_count and not target.request_id:
        rule = "a repeated call needs the session.request_id of the first attempt"
        raise InvalidFieldError("received_token_count", received_count, rule)
    if has_source:
        raise InvalidFieldError("source", "a source", "a session continues from its own state", "Leave it out")


def check_target(target: Target, field: str = "session") -> None:
    """Check what a call says about its session.

    Args:
        target: the session and the call.
        field: the field that holds them.

    Raises:
        InvalidFieldError: an id is missing or malformed, or the position is negative.
    """
    check_request_id(target.request_id, f"{field}.request_id")
    if target.position is not None and target.position < 0:
        raise InvalidFieldError(f"{field}.position", target.position, "must not be negative")
    check_session_id(target.session_id, f"{field}.session_id")


def check_session_id(session_id: str, field: str) -> None:
    """Check the id of a session.

    Raises:
        InvalidFieldError: it is missing or malformed.
    """
    if not session_id:
        raise InvalidFieldError(field, "none", "the id of a session is needed")
    if not _SESSION_ID.fullmatch(session_id):
        rule = "must be 1 to 64 letters, digits, '.', '_' or '-'"
        raise InvalidFieldError(field, repr(shortened(session_id)), rule)


def check_request_id(request_id: str, field: str) -> None:
    """Check the name of a call; may be empty.

    Raises:
        InvalidFieldError: it is too long.
    """
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS:
        rule = f"at most {MAX_REQUEST_ID_CHARACTERS} are allowed"
        raise InvalidFieldError(field, f"{len(request_id)} characters", rule)
