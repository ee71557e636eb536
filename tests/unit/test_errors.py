"""The table of errors: every domain error has a row, which determines its status on the wire."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2, error_details_pb2

from elman_server import errors
from elman_server.rpc.transport.statuses import STATUSES, wire_status


def subclasses(base: type[errors.DomainError]) -> set[type[errors.DomainError]]:
    return {base}.union(*map(subclasses, base.__subclasses__()))


# Base classes, and errors that are never raised during a call.
BASES = {errors.DomainError, errors.SessionError, errors.SessionConflictError, errors.StoreError}
NEVER_IN_A_CALL = subclasses(errors.StartError)


def test_every_domain_error_has_a_row() -> None:
    assert subclasses(errors.DomainError) - BASES - NEVER_IN_A_CALL == STATUSES.keys()


def test_field_is_named_in_the_message_and_in_bad_request() -> None:
    error = errors.InvalidFieldError("max_tokens", 9, "must be 1 to 5", "Ask for fewer", limit=5)
    status = wire_status(error)
    assert (status.code, status.message) == (
        code_pb2.INVALID_ARGUMENT,
        "max_tokens: got 9; must be 1 to 5. Ask for fewer",
    )
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_FIELD", "elman.dev", {"limit": "5"})
    (violation,) = request.field_violations
    assert (violation.field, violation.description) == ("max_tokens", "got 9; must be 1 to 5. Ask for fewer")


def test_machine_readable_details_are_in_the_metadata() -> None:
    status = wire_status(errors.SessionBusyError("tale", 7))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, info.reason) == (code_pb2.FAILED_PRECONDITION, "SESSION_BUSY")
    assert dict(info.metadata) == {"position": "7"}
    assert len(status.details) == 1


@pytest.mark.parametrize(
    "error", [ValueError("a secret"), errors.StartError("a secret"), errors.StoreError("a secret")]
)
def test_internal_errors_are_opaque(error: Exception) -> None:
    status = wire_status(error)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message, info.reason) == (code_pb2.INTERNAL, "internal error", "INTERNAL")


def test_long_message_is_truncated_to_fit_into_headers() -> None:
    status = wire_status(errors.ModelFailedError("é" * 5000))
    assert len(status.message.encode()) <= 1003
    assert status.message.endswith("é...")
