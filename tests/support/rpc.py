"""The details of a failed call."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def check_error(error: grpc.aio.AioRpcError, code: str, reason: str, field: str | None) -> None:
    assert error.code().name == code
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "elman.dev")
    if field is None:
        assert len(status.details) == 1
        return
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    (violation,) = bad.field_violations
    assert violation.field == field
    assert violation.description
    assert error.details() == f"{field}: {violation.description}"
