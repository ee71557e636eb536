"""Errors as clients see them. Each class owns its status code and its reason.

    RequestError -> google.rpc.Status { code, message, details: ErrorInfo { reason, domain, metadata }, BadRequest? }

The errors of the rooms behind have their RequestError each, see `request_error`. Whatever else is raised is a defect:
opaque to the client, loud in the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from elman_server.scheduling import QueueFullError, SchedulerStoppedError, SchedulingError, SequenceFailedError
from elman_server.sessions import errors as sessions

DOMAIN = "elman.dev"
_LISTED = 10
# A status travels in headers of 8 KiB, where a message may take five times its bytes: what a caller has written is not
# repeated at any length.
_LONGEST = 1000  # bytes


class RequestError(Exception):
    """A request that cannot be served as it is.

    Args:
        message: what is wrong, where, and what would be right; cut where it becomes too long for a header.
        metadata: facts for programs, such as the limit that was passed.
    """

    code: ClassVar[int]
    reason: ClassVar[str]

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(_cut(message))
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def details(self) -> list[Message]:
        return [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)]

    def status(self) -> status_pb2.Status:
        """The error on the wire."""
        status = status_pb2.Status(code=self.code, message=str(self))
        for detail in self.details():
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


class FieldError(RequestError):
    """A field of the request is at fault.

    Args:
        field: its path in the request, such as "sampling.temperature".
        message: what is wrong with it and what would be right.
    """

    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    def __init__(self, field: str, message: str, **metadata: object) -> None:
        super().__init__(f"{field}: {message}", **metadata)
        self.field = field
        self.description = str(self).removeprefix(f"{field}: ")

    def details(self) -> list[Message]:
        violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.description)
        return [*super().details(), error_details_pb2.BadRequest(field_violations=[violation])]


class ModelNotFoundError(FieldError):
    """No model of that name is here."""

    code = code_pb2.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class ModelUnsuitableError(FieldError):
    """The model is here but does not do what the call asks for."""

    reason = "MODEL_UNSUITABLE"


class InputTooLongError(FieldError):
    """More steps than one request may have."""

    reason = "INPUT_TOO_LONG"


class AnswerTooLargeError(FieldError):
    """More bytes than one answer may have."""

    reason = "ANSWER_TOO_LARGE"


class MessageTooLargeError(RequestError):
    """More bytes than one message may have."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class QueueFullRequestError(RequestError):
    """Too many wait already; try again later."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class ClientTooSlowError(RequestError):
    """The client has not read for too long."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "CLIENT_TOO_SLOW"


class ServerDrainingError(RequestError):
    """The server is shutting down; another one, or a later try, will do."""

    code = code_pb2.UNAVAILABLE
    reason = "SERVER_DRAINING"


class ModelFailedError(RequestError):
    """The model failed on this input."""

    code = code_pb2.INTERNAL
    reason = "MODEL_FAILED"


class SessionNotFoundRequestError(RequestError):
    """There is no session of that id; it may have expired."""

    code = code_pb2.NOT_FOUND
    reason = "SESSION_NOT_FOUND"


class SessionExistsRequestError(RequestError):
    """There is a session of that id already."""

    code = code_pb2.ALREADY_EXISTS
    reason = "SESSION_EXISTS"


class PositionMismatchRequestError(RequestError):
    """The session is at another position; the metadata say at which."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "POSITION_MISMATCH"


class SessionBusyRequestError(RequestError):
    """A call is under way on the session; the metadata say at which position it is."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "SESSION_BUSY"


class RequestMismatchRequestError(RequestError):
    """The request_id belongs to another call."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "REQUEST_MISMATCH"


class BundleMismatchRequestError(RequestError):
    """The session belongs to another bundle."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "BUNDLE_MISMATCH"


class SessionDamagedRequestError(RequestError):
    """Nothing of what the store holds of the session is of use."""

    code = code_pb2.DATA_LOSS
    reason = "SESSION_DAMAGED"


class SessionLimitRequestError(RequestError):
    """The caller has as many sessions as they may."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "SESSION_LIMIT"


class StoreFullRequestError(RequestError):
    """There is no space left for sessions."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "STORE_FULL"


class StoreUnavailableRequestError(RequestError):
    """The store of sessions does not answer; a later try may do."""

    code = code_pb2.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


class UnexpectedError(RequestError):
    """A defect of the server."""

    code = code_pb2.INTERNAL
    reason = "INTERNAL"


def request_error(error: RequestError | SchedulingError | sessions.SessionError) -> RequestError:
    """An error as the client sees it, whichever room it comes from."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, sessions.EmptyPromptError):
        return FieldError("text", f"{error}: there is nothing to continue")
    if isinstance(error, sessions.SessionFileError):
        return FieldError("content", str(error))
    for kind, seen in _SEEN.items():
        if isinstance(error, kind):
            facts = {name: getattr(error, name) for name in ("position", "limit") if hasattr(error, name)}
            return seen(str(error), **facts)
    return UnexpectedError("internal error")


_SEEN: dict[type[Exception], type[RequestError]] = {
    QueueFullError: QueueFullRequestError,
    SchedulerStoppedError: ServerDrainingError,
    SequenceFailedError: ModelFailedError,
    sessions.SessionNotFoundError: SessionNotFoundRequestError,
    sessions.SessionExistsError: SessionExistsRequestError,
    sessions.PositionMismatchError: PositionMismatchRequestError,
    sessions.SessionBusyError: SessionBusyRequestError,
    sessions.RequestMismatchError: RequestMismatchRequestError,
    sessions.BundleMismatchError: BundleMismatchRequestError,
    sessions.SessionDamagedError: SessionDamagedRequestError,
    sessions.SessionLimitError: SessionLimitRequestError,
    sessions.StoreFullError: StoreFullRequestError,
    sessions.StoreError: StoreUnavailableRequestError,
}


def _cut(message: str) -> str:
    written = message.encode()
    return message if len(written) <= _LONGEST else written[:_LONGEST].decode(errors="ignore") + "..."


def grpc_status(error: RequestError) -> grpc.Status:
    """The error as grpc's own calls take it."""
    return rpc_status.to_status(error.status())


def listed(names: Iterable[str]) -> str:
    """Names for a message, which must not become long."""
    first = list(names)
    more = f" and {len(first) - _LISTED} more" if len(first) > _LISTED else ""
    return ", ".join(first[:_LISTED]) + more
