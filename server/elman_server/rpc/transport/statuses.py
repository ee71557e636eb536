"""The table of domain errors and their gRPC statuses, and how an error is written on the wire.

    DomainError -> google.rpc.Status { code, message, details: ErrorInfo { reason, domain, metadata }, BadRequest? }

Reasons are stable: programs look at them. An exception of any other class is a defect: the client sees INTERNAL and no
details, the log has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from elman_server import errors

DOMAIN = "elman.dev"
# A status travels in HTTP/2 headers of at most 8 KiB, where a character may take five times its bytes.
_MESSAGE_BYTES = 1000


@dataclass(frozen=True)
class Row:
    """How one class of errors looks on the wire.

    Attributes:
        code: a google.rpc.Code.
        reason: of the ErrorInfo.
    """

    code: int
    reason: str


INTERNAL = Row(code_pb2.INTERNAL, "INTERNAL")
_STORE_UNAVAILABLE = Row(code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE")

STATUSES: dict[type[errors.DomainError], Row] = {
    errors.InvalidFieldError: Row(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
    errors.ConstraintError: Row(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
    errors.EmptyPromptError: Row(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
    errors.SessionFileError: Row(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
    errors.ModelNotFoundError: Row(code_pb2.NOT_FOUND, "MODEL_NOT_FOUND"),
    errors.ModelUnsuitableError: Row(code_pb2.INVALID_ARGUMENT, "MODEL_UNSUITABLE"),
    errors.InputTooLongError: Row(code_pb2.INVALID_ARGUMENT, "INPUT_TOO_LONG"),
    errors.ResponseTooLargeError: Row(code_pb2.INVALID_ARGUMENT, "ANSWER_TOO_LARGE"),
    errors.MalformedMessageError: Row(code_pb2.INVALID_ARGUMENT, "MALFORMED_MESSAGE"),
    errors.MessageTooLargeError: Row(code_pb2.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
    errors.TooManyFieldsError: Row(code_pb2.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
    errors.QueueFullError: Row(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    errors.ConstraintMemoryError: Row(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    errors.ClientTooSlowError: Row(code_pb2.RESOURCE_EXHAUSTED, "CLIENT_TOO_SLOW"),
    errors.ClientIdleError: Row(code_pb2.DEADLINE_EXCEEDED, "CLIENT_IDLE"),
    errors.ServerDrainingError: Row(code_pb2.UNAVAILABLE, "SERVER_DRAINING"),
    errors.ModelFailedError: Row(code_pb2.INTERNAL, "MODEL_FAILED"),
    errors.EngineError: Row(code_pb2.INTERNAL, "MODEL_FAILED"),
    errors.SessionNotFoundError: Row(code_pb2.NOT_FOUND, "SESSION_NOT_FOUND"),
    errors.SessionExistsError: Row(code_pb2.ALREADY_EXISTS, "SESSION_EXISTS"),
    errors.PositionMismatchError: Row(code_pb2.FAILED_PRECONDITION, "POSITION_MISMATCH"),
    errors.SessionBusyError: Row(code_pb2.FAILED_PRECONDITION, "SESSION_BUSY"),
    errors.RequestMismatchError: Row(code_pb2.FAILED_PRECONDITION, "REQUEST_MISMATCH"),
    errors.BundleMismatchError: Row(code_pb2.FAILED_PRECONDITION, "BUNDLE_MISMATCH"),
    errors.SessionDamagedError: Row(code_pb2.DATA_LOSS, "SESSION_DAMAGED"),
    errors.SessionLimitError: Row(code_pb2.RESOURCE_EXHAUSTED, "SESSION_LIMIT"),
    errors.StoreFullError: Row(code_pb2.RESOURCE_EXHAUSTED, "STORE_FULL"),
    errors.SessionElsewhereError: _STORE_UNAVAILABLE,
    errors.StoreUnavailableError: _STORE_UNAVAILABLE,
    errors.StoreConflictError: _STORE_UNAVAILABLE,
    errors.SessionMovedError: _STORE_UNAVAILABLE,
}


def row_of(error: Exception) -> Row:
    """The row of an error; INTERNAL for whatever is not a domain error with a row."""
    return STATUSES.get(type(error), INTERNAL) if isinstance(error, errors.DomainError) else INTERNAL


def wire_status(error: Exception) -> status_pb2.Status:
    """An error as clients see it.

    Args:
        error: any; only what a domain error with a row says is repeated.
    """
    row = row_of(error)
    if row is INTERNAL or not isinstance(error, errors.DomainError):
        return _status(row, "internal error", [_error_info(row, {})])
    message = _cut(str(error))
    details: list[Message] = [_error_info(row, error.metadata)]
    if isinstance(error, errors.InvalidFieldError):
        description = message.removeprefix(f"{error.field}: ")
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=description)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return _status(row, message, details)


def grpc_status(error: Exception) -> grpc.Status:
    """The same for grpc's own calls."""
    return rpc_status.to_status(wire_status(error))


def _error_info(row: Row, metadata: dict[str, str]) -> Message:
    info: Message = error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=metadata)
    return info


def _status(row: Row, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=row.code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(message: str) -> str:
    written = message.encode()
    if len(written) <= _MESSAGE_BYTES:
        return message
    return written[:_MESSAGE_BYTES].decode(errors="ignore") + "..."
