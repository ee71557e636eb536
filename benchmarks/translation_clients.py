"""The clients of the translation case, in a process of their own: each asks for its next translation as soon as it has
the one before.

    python -m benchmarks.translation_clients < order.json
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import asdict, dataclass

import grpc

from benchmarks.machine import cpu_seconds
from benchmarks.subprocesses import Json, answer, measure
from elman import v1


@dataclass(frozen=True)
class TranslationOrder:
    """What to ask a server for.

    Attributes:
        address: the server's.
        pid: its process.
        model: the model's name.
        sources: token ids; the clients go through them again and again.
        clients: how many translations are under way at once.
        each: how many each client asks for.
        max_tokens: of each translation.
    """

    address: str
    pid: int
    model: str
    sources: list[list[int]]
    clients: int
    each: int
    max_tokens: int


@dataclass(frozen=True)
class Translated:
    """What a round has brought.

    Attributes:
        translations: how many.
        seconds: that it took.
        latencies: of each translation, in seconds.
        server_cpu_seconds: of the server's process meanwhile.
    """

    translations: int
    seconds: float
    latencies: list[float]
    server_cpu_seconds: float


def measure_translations(order: TranslationOrder) -> Translated:
    """Run the clients now, in another process."""
    return Translated(**measure("benchmarks.translation_clients", asdict(order)))


def _measure(given: Json) -> Json:
    return asdict(asyncio.run(_round(TranslationOrder(**given))))


async def _round(order: TranslationOrder) -> Translated:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(order.address) as channel:
        await channel.channel_ready()
        stub = v1.InferenceServiceStub(channel)

        async def client(index: int, each: int) -> None:
            for number in range(each):
                begun = time.perf_counter()
                source = order.sources[(index + number * order.clients) % len(order.sources)]
                await _translate(stub, _message(order, source), order)
                latencies.append(time.perf_counter() - begun)

        await asyncio.gather(*(client(index, 1) for index in range(order.clients)))  # To warm up.
        latencies.clear()
        gc.disable()
        before, begun = cpu_seconds(order.pid), time.perf_counter()
        await asyncio.gather(*(client(index, order.each) for index in range(order.clients)))
        seconds = time.perf_counter() - begun
        return Translated(len(latencies), seconds, latencies, cpu_seconds(order.pid) - before)


def _message(order: TranslationOrder, source: list[int]) -> v1.GenerateRequest:
    message = v1.GenerateRequest(model=order.model, max_tokens=order.max_tokens)
    message.source.tokens.ids.extend(source)
    message.greedy.SetInParent()
    return message


async def _translate(stub: v1.InferenceServiceAsyncStub, message: v1.GenerateRequest, order: TranslationOrder) -> None:
    count = 0
    async for response in stub.Generate(message):
        count += len(response.chunk.token_ids)
    if count != order.max_tokens:
        raise RuntimeError(f"asked for {order.max_tokens} tokens, got {count}")


if __name__ == "__main__":
    answer(_measure)
