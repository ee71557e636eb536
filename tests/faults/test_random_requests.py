"""Random requests to every method: each is answered or refused with a reason, and the server is what it was before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings

from elman_bundle import Bundle
from elman_protos import v1
from tests.support.amount import examples
from tests.support.command_line import Served
from tests.support.random_messages import messages

SERVICES = [
    v1.GenerateRequest.DESCRIPTOR.file.pool.FindServiceByName(f"elman.v1.{name}Service")
    for name in ("Inference", "Analysis", "Session")
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
EXAMPLES = examples(2000 // len(METHODS), everything=200_000 // len(METHODS))
NAMES = {
    "model": ["gru", "tags", ""],
    "name": ["gru", "tags"],
    "session_id": ["s", "t"],
    "new_session_id": ["t", ""],
    "text": ["hello ", "abc"],
    "request_id": ["", "1", "2"],
}
# What a caller can bring about. MODEL_FAILED is INTERNAL, and says so of the model.
EXPECTED = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}


@pytest.fixture(scope="module")
def channel(bundles: Mapping[str, Bundle]) -> Iterator[grpc.Channel]:
    limits = ("--max-tokens-limit", "40", "--input-limit", "2000", "--sessions-per-caller", "20")
    served = Served(bundles["gru"].path, bundles["tags"].path, "--provider", "cpu", *limits)
    with grpc.insecure_channel(served.address) as channel:
        yield channel
    served.end()


def reason_of(channel: grpc.Channel, path: str, request: Any) -> str:
    """Call a method with one request; return the reason of its refusal, or nothing."""
    method = METHODS[path]
    response: Any = message_factory.GetMessageClass(method.output_type)
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(path, type(request).SerializeToString, response.FromString)
    try:
        answer = call(iter([request]) if method.client_streaming else request, timeout=30)
        if method.server_streaming:
            list(answer)
    except grpc.RpcError as error:
        return checked_reason(error)
    return ""


def checked_reason(error: Any) -> str:
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    assert status is not None, error
    status.details[0].Unpack(info)
    assert error.code().name in EXPECTED or info.reason == "MODEL_FAILED", error
    assert "internal" not in status.message, error
    return info.reason


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", METHODS)
def test_every_request_is_answered_or_refused(channel: grpc.Channel, path: str) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(messages(METHODS[path].input_type, NAMES))
    def check(request: Any) -> None:
        reason_of(channel, path, request)

    check()
    text = v1.GenerateRequest(model="gru", text="hello ", max_tokens=5)
    assert not reason_of(channel, "/elman.v1.InferenceService/Generate", text)
