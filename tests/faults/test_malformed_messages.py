"""A message that cannot be parsed is the caller's mistake, in every method and at any place of a stream; a large one is
refused before it is parsed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from elman_bundle import Bundle
from elman_protos import v1
from tests.support.serving import Running, serving

SERVICES = [v1.GenerateRequest.DESCRIPTOR.file.pool.FindServiceByName(f"elman.v1.{name}Service")
            for name in ("Inference", "Analysis", "Session")]  # fmt: skip
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
MALFORMED = {
    "ends too early": b"\x0a\x05ab",
    "no field": b"\xff" * 12,
    "not UTF-8": b"\x0a\x02\xc3\x28",  # field 1
}
LIMIT = 4000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(bundles: Mapping[str, Bundle]) -> AsyncIterator[Running]:
    async with serving(bundles["lstm"], bundles["tags"], message_limit=LIMIT) as running:
        yield running


def starts_with_text(message: Any) -> bool:
    field = message.fields_by_number.get(1)
    return field is not None and field.type == field.TYPE_STRING


async def refusal(running: Running, path: str, *messages: bytes) -> tuple[grpc.StatusCode, str]:
    """Send bytes as they are; return the status and its reason."""
    method = METHODS[path]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    async with grpc.aio.insecure_channel(running.address) as channel:
        call: Any = getattr(channel, kind)(path)(iter(messages) if method.client_streaming else messages[-1])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [response async for response in call] if method.server_streaming else await call
        status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None, caught.value
    status.details[0].Unpack(info)
    return caught.value.code(), info.reason


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("path", METHODS)
async def test_a_malformed_message_is_the_callers_mistake(running: Running, path: str, kind: str) -> None:
    if kind == "not UTF-8" and not starts_with_text(METHODS[path].input_type):
        pytest.skip("its first field is not a text")
    with structlog.testing.capture_logs() as logs:
        code, reason = await refusal(running, path, MALFORMED[kind])
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert not [line for line in logs if line["log_level"] == "error"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_malformed_message_may_be_a_later_one_of_its_stream(running: Running) -> None:
    path = "/elman.v1.InferenceService/StreamClassify"
    config = v1.StreamClassifyRequest(config=v1.StreamConfig(model="tags")).SerializeToString()
    code, reason = await refusal(running, path, config, MALFORMED["no field"])
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", METHODS)
async def test_a_large_message_is_refused_before_it_is_parsed(running: Running, path: str) -> None:
    code, reason = await refusal(running, path, MALFORMED["no field"] * (LIMIT // 10))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
