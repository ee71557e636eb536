"""However a call ends, with its work done or because its client has gone, nothing is logged as an error, and nothing of
what users sent is in the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from elman import Client
from elman_bundle import Bundle
from elman_protos import v1
from tests.support.serving import Running, serving

SECRET = "hello my secret"
Ending = Callable[[Running, Any], Awaitable[None]]
GENERATE = v1.GenerateRequest(model="lstm", text=SECRET, max_tokens=200)
CLASSIFY = v1.ClassifyRequest(model="tags", text=SECRET)
CONFIG = v1.StreamClassifyRequest(config=v1.StreamConfig(model="tags"))
PIECE = v1.StreamClassifyRequest(piece=v1.Piece(text=SECRET))
STREAMS: dict[str, list[Any]] = {
    "GenerateMany": [v1.GenerateManyRequest(requests=[GENERATE] * 30)] * 2,
    "ClassifyMany": [v1.ClassifyManyRequest(requests=[CLASSIFY] * 30)] * 2,
    "StreamClassify": [CONFIG, *[PIECE] * 50],
}


async def sent(messages: list[Any], pause: float) -> AsyncIterator[Any]:
    for message in messages:
        yield message
        await asyncio.sleep(pause)


async def drained(call: Any) -> None:
    async for _ in call:
        pass


@pytest.fixture
async def running(bundles: Mapping[str, Bundle]) -> AsyncIterator[Running]:
    async with serving(bundles["lstm"], bundles["tags"]) as running:
        yield running


@pytest.mark.parametrize("end", ["done", "cancelled", "deadline", "closed"])
@pytest.mark.parametrize("method", STREAMS)
async def test_the_end_of_a_stream_is_quiet(running: Running, method: str, end: str) -> None:
    with capture_logs() as logs:
        for number in range(12):
            async with grpc.aio.insecure_channel(running.address) as channel:
                make = getattr(v1.InferenceServiceStub(channel), method)
                timeout = 0.003 * number + 0.001 if end == "deadline" else None
                call = make(sent(STREAMS[method], 0.001), timeout=timeout)
                reading = asyncio.create_task(drained(call))
                if end in {"cancelled", "closed"}:
                    await asyncio.sleep(0.004 * number)
                if end == "cancelled":
                    call.cancel()
                if end != "closed":
                    await asyncio.wait((reading,))
            await asyncio.wait((reading,))
        async with asyncio.timeout(10):
            while running.server.active_calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert [log for log in logs if log["log_level"] in {"warning", "error", "critical"}] == []
    assert SECRET not in str(logs)


async def many(client: Client) -> None:
    async with client.many() as calls:
        await asyncio.gather(*(calls.sample(SECRET, count=2, model="lstm", max_tokens=5) for _ in range(20)))
        await asyncio.gather(*(calls.classify(SECRET, model="tags") for _ in range(20)))


async def test_the_end_of_many_calls_is_quiet(running: Running) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            await many(running.client)
    assert [log for log in logs if log["log_level"] != "debug"] == []
    structlog.reset_defaults()
