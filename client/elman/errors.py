"""What a client can get instead of an answer.

    ElmanError
      InvalidRequestError      the request is at fault; `fields` says where
        ModelNotFoundError     the server holds no such model
        SessionNotFoundError   there is no such session
        SessionExistsError     there is a session of that id already
      SessionConflictError     the session is not where the call expects it, or another call runs; `position` says where
      OverloadedError          the server has as much as it takes; try again later
      UnavailableError         no server there, or it is shutting down; try again, or elsewhere
      DeadlineExceededError    the time the caller gave is up
      ServerError              the model or the server failed

Every one carries the stable `reason` of the error's ErrorInfo, such as "QUEUE_FULL", for programs to look at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from elman_protos import v1


class ElmanError(Exception):
    """A call has failed.

    Attributes:
        code: the gRPC status code.
        reason: the stable name of the error; "" where the transport failed.
        metadata: facts about it, such as the limit that was passed.
        fields: what is wrong with which field of the request.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        fields: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.metadata = metadata or {}
        self.fields = fields or {}


class InvalidRequestError(ElmanError):
    """The request is at fault."""


class ModelNotFoundError(InvalidRequestError):
    """The server holds no such model."""


class SessionNotFoundError(InvalidRequestError):
    """There is no such session."""


class SessionExistsError(InvalidRequestError):
    """There is a session of that id already."""


class SessionConflictError(ElmanError):
    """Somebody else advances the session: it is not where the call expects it, or another call is under way on it."""

    @property
    def position(self) -> int:
        """Where the session is in truth."""
        return int(self.metadata["position"])


class OverloadedError(ElmanError):
    """The server has as much as it takes."""


class UnavailableError(ElmanError):
    """No server is there, or it is shutting down, or the connection has gone."""


class DeadlineExceededError(ElmanError):
    """The time the caller gave is up."""


class ServerError(ElmanError):
    """The model or the server failed."""


# The status code alone does not tell whether trying again can help.
_CLASSES_BY_REASON: dict[str, type[ElmanError]] = {
    "MESSAGE_TOO_LARGE": InvalidRequestError,
    "SESSION_NOT_FOUND": SessionNotFoundError,
    "SESSION_EXISTS": SessionExistsError,
    "POSITION_MISMATCH": SessionConflictError,
    "SESSION_BUSY": SessionConflictError,
}
_CLASSES: dict[grpc.StatusCode, type[ElmanError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}


# Without a reason they are the transport's: elman gives one for whatever it says itself. In these ways balancers end a
# stream whose server has gone.
_BROKEN_OFF = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> ElmanError:
    """The exception for what a call to `address` got."""
    message = error.details() or error.code().name
    found = _error(error.code(), message, _details(error))
    if not found.reason and error.code() is grpc.StatusCode.UNAVAILABLE:
        message = f"cannot reach {address}: is a server running there? `elman serve BUNDLE` starts one ({message})"
        return UnavailableError(message, code=error.code())
    if not found.reason and error.code() in _BROKEN_OFF:
        return UnavailableError(f"the call was broken off: {message}", code=error.code())
    return found


def _details(error: grpc.aio.AioRpcError) -> Iterable[any_pb2.Any]:
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:
        # They are of another status: the caller's time ran out while the server's answer came in.
        return ()
    return status.details if status is not None else ()


def from_failure(failure: v1.Failure) -> ElmanError:
    """The exception for what one request among many got."""
    return _error(_CODES[failure.code], failure.message, failure.details)


def _error(code: grpc.StatusCode, message: str, details: Iterable[any_pb2.Any]) -> ElmanError:
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    for detail in details:
        detail.Unpack(info) or detail.Unpack(request)
    return _CLASSES_BY_REASON.get(info.reason, _CLASSES.get(code, ServerError))(
        message,
        code=code,
        reason=info.reason,
        metadata=dict(info.metadata),
        fields={violation.field: violation.description for violation in request.field_violations},
    )


@contextlib.contextmanager
def rpc_errors(address: str) -> Iterator[None]:
    """What a call to `address` gets is raised as an exception of this module."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, address) from error


@contextlib.contextmanager
def expressible() -> Iterator[None]:
    """What the protocol cannot even express is refused like what the server refuses."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        message = f"the request cannot be expressed: {error}"
        raise InvalidRequestError(message, code=grpc.StatusCode.INVALID_ARGUMENT) from error
