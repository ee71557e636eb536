"""Exactly once: a call with a request id is recorded in its session, so that a repetition is answered from the record.

a new request id               the call runs, if the session is at the expected position
the same request, finished     the recorded answer is returned
the same request, interrupted  the call continues from where it was interrupted
another request                RequestMismatchError
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.errors import PositionMismatchError, RequestMismatchError
from elman_server.sessions.session import Call, Session


@dataclass(frozen=True)
class Target:
    """The session that a call addresses, and the identity of the call.

    Attributes:
        session_id: the session.
        position: position of the session that the caller expects; None for any.
        request_id: name of the call; "" for none.
        fingerprint: digest of the request.
    """

    session_id: str
    position: int | None
    request_id: str
    fingerprint: bytes


def recorded_call(session: Session, target: Target) -> Call | None:
    """Return the record of a call; None if the call is new.

    Raises:
        PositionMismatchError: the call is new and expects another position, or the session has advanced since the call
            was interrupted.
        RequestMismatchError: another request has used the request id.
    """
    call = session.calls.get(target.request_id) if target.request_id else None
    if call is None:
        if target.position is not None and target.position != session.position:
            message = (
                f"session.position: got {target.position}; session {session.session_id!r} is at position "
                f"{session.position}"
            )
            raise PositionMismatchError(message, session.position)
        return None
    check_same_request(call, target)
    if not call.outcome and call.end != session.position:
        message = (
            f"session.request_id: got {call.request_id!r}; this call was interrupted at position {call.end}, and "
            f"session {session.session_id!r} has since advanced to {session.position}. Choose a new request_id"
        )
        raise PositionMismatchError(message, session.position)
    return call


def finished_call(session: Session, target: Target) -> Call | None:
    """Return the record of a call if it has finished.

    Raises:
        RequestMismatchError: another request has used the request id.
    """
    call = session.calls.get(target.request_id)
    if call is None or not call.outcome:
        return None
    check_same_request(call, target)
    return call


def check_same_request(call: Call, target: Target) -> None:
    """Check that a recorded call was made by the same request.

    Raises:
        RequestMismatchError: another request has used the request id.
    """
    if call.fingerprint != target.fingerprint:
        raise RequestMismatchError(target.session_id, target.request_id)


def pack_outputs(outputs: NDArray[Any]) -> bytes:
    """Return an array as the answer of a recorded call: "DTYPE:SHAPE", a newline and the values."""
    header = f"{outputs.dtype.str}:{','.join(map(str, outputs.shape))}\n".encode()
    return header + outputs.tobytes()


def unpack_outputs(answer: bytes) -> NDArray[Any]:
    """Return the array of a recorded answer."""
    header, _, content = answer.partition(b"\n")
    dtype, _, shape = header.decode().partition(":")
    return np.frombuffer(content, np.dtype(dtype)).reshape([int(size) for size in shape.split(",")])
