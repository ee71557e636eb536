"""The exceptions of the client.

    ElmanError
      InvalidRequestError      the request is wrong; `fields` says where
        ModelNotFoundError     the server has no such model
        SessionNotFoundError   there is no such session
        SessionExistsError     there is a session with this id already
      SessionConflictError     the session is not where the call expects it, or another call runs; `position` says where
      OverloadedError          the server is at its limits; try again later
      UnavailableError         no server is there, or it is shutting down; try again, or elsewhere
      DeadlineExceededError    the time limit of the caller has passed
      ServerError              the model or the server failed

Each has the stable `reason` of the error's ErrorInfo, such as "QUEUE_FULL", for programs to check.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from elman.proxies import proxy_variable
from elman_protos import v1


class ElmanError(Exception):
    """A call has failed.

    Attributes:
        code: the gRPC status code.
        reason: the stable name of the error; "" for an error of the transport.
        metadata: facts about the error, such as the limit that was exceeded.
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
    """The request is wrong."""


class ModelNotFoundError(InvalidRequestError):
    """The server has no such model."""


class SessionNotFoundError(InvalidRequestError):
    """There is no such session."""


class SessionExistsError(InvalidRequestError):
    """There is a session with this id already."""


class SessionConflictError(ElmanError):
    """Another caller advances the session: it is not where the call expects it, or another call runs on it."""

    @property
    def position(self) -> int:
        """The actual position of the session."""
        return int(self.metadata["position"])


class OverloadedError(ElmanError):
    """The server is at its limits."""


class UnavailableError(ElmanError):
    """No server is there, or it is shutting down, or the connection was lost."""


class DeadlineExceededError(ElmanError):
    """The time limit of the caller has passed."""


class ServerError(ElmanError):
    """The model or the server failed."""


# The status code alone does not say whether a retry can help.
_CLASSES_BY_REASON: dict[str, type[ElmanError]] = {
    "MALFORMED_MESSAGE": InvalidRequestError,
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


# Codes with which load balancers end a stream whose server has disappeared. elman gives a reason for every error of its
# own, so without a reason they come from the transport.
_CONNECTION_LOST = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)

_LARGER = "message larger than max"  # in the words of grpc, which refuses very large ones before the server sees them

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> ElmanError:
    """The exception for the status of a call to `address`."""
    message = error.details() or error.code().name
    found = _error(error.code(), message, _details(error))
    if not found.reason and error.code() is grpc.StatusCode.UNAVAILABLE:
        proxy = proxy_variable(address)
        if proxy is None:
            message = f"cannot reach {address}: is a server running there? `elman serve BUNDLE` starts one ({message})"
        else:
            message = (
                f"cannot reach {address} through the proxy that the variable {proxy} names. If it is not to be used, "
                f"list the host in no_proxy ({message})"
            )
        return UnavailableError(message, code=error.code())
    if not found.reason and _LARGER in message:
        rule = "the server reads no messages of this size. Split the request, or raise --message-limit of the server"
        return InvalidRequestError(f"message: {rule} ({message})", code=error.code(), reason="MESSAGE_TOO_LARGE")
    if not found.reason and error.code() in _CONNECTION_LOST:
        return UnavailableError(f"the connection was lost: {message}", code=error.code())
    return found


def _details(error: grpc.aio.AioRpcError) -> Iterable[any_pb2.Any]:
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:
        # The details belong to another status: the time limit passed while the server's answer arrived.
        return ()
    return status.details if status is not None else ()


def from_failure(failure: v1.Failure) -> ElmanError:
    """The exception for the failure of one request of a multiplexed call."""
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
    """Raise the errors of a call to `address` as exceptions of this module."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, address) from error


@contextlib.contextmanager
def refused_arguments() -> Iterator[None]:
    """Raise arguments that the protocol cannot express as InvalidRequestError, like those that the server refuses."""
    try:
        yield
    except (ValueError, TypeError, OverflowError, AttributeError, LookupError, RecursionError) as error:
        message = f"the request cannot be expressed: {error}"
        raise InvalidRequestError(message, code=grpc.StatusCode.INVALID_ARGUMENT) from error
