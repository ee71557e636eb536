"""A polite client: it asks for the health of the server and generates 32 tokens, all the while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.processes.worker import Json, answer
from elman_protos import v1

_PAUSE = 0.02  # seconds between two calls
_PATIENCE = 60.0  # seconds for one call


async def _probe(address: str, model: str, seconds: float) -> Json:
    async with grpc.aio.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        inference: Any = v1.InferenceServiceStub(channel)
        request = v1.GenerateRequest(model=model, text="The quick brown fox", max_tokens=32)

        async def check() -> None:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE)

        async def generate() -> None:
            async for _ in inference.Generate(request, timeout=_PATIENCE):
                pass

        checks, generations = await asyncio.gather(_repeat(check, seconds), _repeat(generate, seconds))
    return {"health": checks[0], "health_failures": checks[1], "generate": generations[0], "failures": generations[1]}


async def _repeat(call: Callable[[], Awaitable[None]], seconds: float) -> tuple[list[float], int]:
    """Make a call again and again; returns how long each took in seconds, and how many failed."""
    until, taken, failures = time.monotonic() + seconds, [], 0
    while time.monotonic() < until:
        started = time.monotonic()
        try:
            await call()
        except grpc.aio.AioRpcError:
            failures += 1
        taken.append(time.monotonic() - started)
        await asyncio.sleep(_PAUSE)
    return taken, failures


def _measure(order: Json) -> Json:
    return asyncio.run(_probe(order["address"], order["model"], order["seconds"]))


if __name__ == "__main__":
    answer(_measure)
