"""A stream on which nobody says anything is ended, and holds nothing that others need meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest

from elman_bundle import Bundle
from elman_protos import v1
from elman_server.rpc.transport import interceptor
from tests.support.fake_engine import FakeEngine, continuation
from tests.support.rpc import check_error
from tests.support.serving import serving, serving_fake

Bundles = Mapping[str, Bundle]
CONFIG = v1.StreamClassifyRequest(config=v1.StreamConfig())
METHODS = ["StreamClassify", "GenerateMany", "ClassifyMany"]


async def silent(first: list[Any]) -> AsyncIterator[Any]:
    for message in first:
        yield message
    await asyncio.Event().wait()


def call(channel: grpc.aio.Channel, method: str, first: list[Any], **metadata: str) -> Any:
    stub: Any = v1.InferenceServiceStub(channel)
    named = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    return getattr(stub, method)(silent(first), metadata=named)


async def ended(stream: Any, messages: list[Any] | None = None) -> grpc.aio.AioRpcError:
    """Wait for the error that ends a stream."""
    async with asyncio.timeout(20):
        try:
            async for message in stream:
                if messages is not None:
                    messages.append(message)
        except grpc.aio.AioRpcError as error:
            return error
    raise AssertionError("no error")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("said", [False, True])
async def test_a_silent_stream_is_ended(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, method: str, said: bool
) -> None:
    first = {
        "StreamClassify": CONFIG,
        "GenerateMany": v1.GenerateManyRequest(),
        "ClassifyMany": v1.ClassifyManyRequest(),
    }
    seconds = 0.4 if said else 0.2
    monkeypatch.setattr(interceptor, "_FIRST_MESSAGE_SECONDS", 0.2)
    async with (
        serving(bundles["lstm"], bundles["tags"], idle_timeout=0.4) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        error = await ended(call(channel, method, [first[method]] if said else []))
        check_error(error, "DEADLINE_EXCEEDED", "CLIENT_IDLE", None)
        assert f"got none for {seconds:g} seconds" in str(error.details())
        async with asyncio.timeout(10):
            while running.server.active_calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_stream_that_is_answered_is_not_idle() -> None:
    engine = FakeEngine()
    engine.seconds = dict.fromkeys(range(5), 0.002)
    request = v1.GenerateManyRequest(requests=[v1.GenerateRequest(text="a", max_tokens=500)])
    async with (
        serving_fake(engine, idle_timeout=0.4) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        messages: list[v1.GenerateManyResponse] = []
        error = await ended(call(channel, "GenerateMany", [request]), messages)
        parts = [part for message in messages for part in message.answers]
        assert [token for part in parts for token in part.response.chunk.token_ids] == continuation([1], 500)
        check_error(error, "DEADLINE_EXCEEDED", "CLIENT_IDLE", None)


@pytest.fixture
def limited(bundles: Bundles) -> Any:
    return serving(bundles["tags"], slots=2, waiting_limit=2)


async def opened(channel: grpc.aio.Channel, **metadata: str) -> Any:
    stream = call(channel, "StreamClassify", [CONFIG], **metadata)
    assert (await anext(aiter(stream))).HasField("started")
    return stream


async def test_who_has_opened_all_streams_keeps_nobody_out(limited: Any) -> None:
    async with limited as running, grpc.aio.insecure_channel(running.address) as channel:
        held = [await opened(channel, elman_caller="loud") for _ in range(4)]
        refused = await ended(call(channel, "StreamClassify", [CONFIG], elman_caller="loud"))
        check_error(refused, "RESOURCE_EXHAUSTED", "QUEUE_FULL", None)
        held += [await opened(channel, elman_caller="other") for _ in range(2)]
        refused = await ended(call(channel, "StreamClassify", [CONFIG], elman_caller="other"))
        check_error(refused, "RESOURCE_EXHAUSTED", "QUEUE_FULL", None)
        # Another connection is another caller.
        assert [found.steps async for found in running.client.stream_classify(["abc"])]
        for stream in held:
            stream.cancel()


async def test_streams_without_a_config_hold_nothing(limited: Any) -> None:
    async with limited as running, grpc.aio.insecure_channel(running.address) as channel:
        waiting = [call(channel, "StreamClassify", []) for _ in range(50)]
        async with asyncio.timeout(10):
            while running.server.active_calls < 50:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        held = [await opened(channel) for _ in range(4)]
        for stream in (*waiting, *held):
            stream.cancel()


async def test_a_connection_has_a_limited_number_of_calls(bundles: Bundles) -> None:
    async with serving(bundles["tags"]) as running, grpc.aio.insecure_channel(running.address) as channel:
        waiting = [call(channel, "StreamClassify", []) for _ in range(1100)]
        async with asyncio.timeout(20):
            while running.server.active_calls < 1024:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert running.server.active_calls == 1024
        assert (await running.client.classify("abc")).steps
        for stream in waiting:
            stream.cancel()


async def test_waiting_requests_of_one_caller_do_not_fill_the_queue_for_others() -> None:
    engine = FakeEngine(capacity=2)
    engine.gate.clear()
    async with (
        serving_fake(engine, waiting_limit=2) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub: Any = v1.InferenceServiceStub(channel)
        request = v1.GenerateRequest(text="a", max_tokens=3)
        loud = [stub.Generate(request) for _ in range(4)]
        async with asyncio.timeout(10):
            while (await running.client.list_models())[0].waiting_count < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        refused = await ended(stub.Generate(request))
        check_error(refused, "RESOURCE_EXHAUSTED", "QUEUE_FULL", None)
        polite = asyncio.create_task(running.client.generate("ab", max_tokens=3, temperature=0).text())
        await asyncio.sleep(0.2)
        assert not polite.done()
        engine.gate.set()
        assert len(await polite) == 3
        for stream in loud:
            assert [response async for response in stream]
