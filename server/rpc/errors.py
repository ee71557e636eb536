"""Errors as clients see them. Each class owns its status code and its reason.

    RequestError -> google.rpc.Status { code, message, details: ErrorInfo { reason, domain, metadata }, BadRequest? }

What is not a RequestError is a defect: opaque to the client, loud in the log.
"""

from __future__ import annotations

from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "elman.dev"


class RequestError(Exception):
    """A request that cannot be served as it is.

    Args:
        message: what is wrong, where, and what would be right.
        metadata: facts for programs, such as the limit that was passed.
    """

    code: ClassVar[int]
    reason: ClassVar[str]

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
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
        self.description = message

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


class UnexpectedError(RequestError):
    """A defect of the server."""

    code = code_pb2.INTERNAL
    reason = "INTERNAL"


def grpc_status(error: RequestError) -> grpc.Status:
    """The error as grpc's own calls take it."""
    return rpc_status.to_status(error.status())
