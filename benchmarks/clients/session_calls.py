"""A client that makes one call after another and records the latency of each.

python -m benchmarks.clients.session_calls < order.json
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import grpc

from benchmarks.processes.worker import Json, answer, measure
from elman.connection import call_metadata
from elman_protos import v1


@dataclass(frozen=True)
class Call:
    """One generation of one token.

    Attributes:
        prompt: token ids of the prompt; may be empty on a session.
        session: id of the session that it continues; "" for none.
    """

    prompt: list[int]
    session: str = ""


@dataclass(frozen=True)
class Answered:
    """The result of a call.

    Attributes:
        first_token: seconds from sending the request to its token.
        end: seconds from sending the request to the end of the call.
        cached_tokens: number of prompt tokens taken from the prefix cache.
    """

    first_token: float
    end: float
    cached_tokens: int


def measure_calls(address: str, model: str, calls: Sequence[Call]) -> list[Answered]:
    """Make the calls in another process."""
    order = {"address": address, "model": model, "calls": [asdict(call) for call in calls]}
    return [Answered(**answered) for answered in measure("benchmarks.clients.session_calls", order)["answered"]]


def _measure(payload: Json) -> Json:
    calls = [Call(**call) for call in payload["calls"]]
    answered = asyncio.run(_call_all(payload["address"], payload["model"], calls))
    return {"answered": [asdict(one) for one in answered]}


async def _call_all(address: str, model: str, calls: list[Call]) -> list[Answered]:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub = v1.InferenceServiceStub(channel)
        gc.disable()
        return [await _answered(stub, model, call) for call in calls]


async def _answered(stub: v1.InferenceServiceAsyncStub, model: str, call: Call) -> Answered:
    request = v1.GenerateRequest(model=model, tokens=v1.TokenSequence(ids=call.prompt), max_tokens=1, seed=1)
    if call.session:
        request.session.session_id = call.session
    started = time.perf_counter()
    first_token, cached_tokens = 0.0, 0
    async for response in stub.Generate(request, metadata=call_metadata("", call.session)):
        if response.HasField("started"):
            cached_tokens = response.started.cached_token_count
        if response.chunk.token_ids:
            first_token = time.perf_counter() - started
    return Answered(first_token, time.perf_counter() - started, cached_tokens)


if __name__ == "__main__":
    answer(_measure)
