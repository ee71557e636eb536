"""The clients of the translation case, in a process of their own: each asks for its next translation as soon as it has
the one before.

    python -m benchmarks.clients.translations < order.json
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import asdict, dataclass

import grpc

from benchmarks.processes.machine import cpu_seconds
from benchmarks.processes.worker import Json, answer, measure
from elman_protos import v1


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
        calls: that the clients share; with each translation that has come the next one is asked for. 0: every
            translation has a call of its own.
    """

    address: str
    pid: int
    model: str
    sources: list[list[int]]
    clients: int
    each: int
    max_tokens: int
    calls: int = 0


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
    return Translated(**measure("benchmarks.clients.translations", asdict(order)))


def _measure(given: Json) -> Json:
    return asdict(asyncio.run(_round(TranslationOrder(**given))))


async def _round(order: TranslationOrder) -> Translated:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(order.address) as channel:
        await channel.channel_ready()
        stub = v1.InferenceServiceStub(channel)

        def source_of(index: int, number: int) -> list[int]:
            return order.sources[(index + number * order.clients) % len(order.sources)]

        async def client(index: int, each: int) -> None:
            for number in range(each):
                begun = time.perf_counter()
                await _translate(stub, _message(order, source_of(index, number)), order)
                latencies.append(time.perf_counter() - begun)

        async def clients_of_a_call(first: int, each: int) -> None:
            call = stub.GenerateMany()
            indices = range(first, order.clients, order.calls)
            requests = [_message(order, source_of(index, number)) for number in range(each) for index in indices]
            begun: list[float] = []  # by request
            counts = [0] * len(requests)

            async def send(count: int) -> None:
                some = requests[len(begun) : len(begun) + count]
                begun.extend([time.perf_counter()] * len(some))
                await call.write(v1.GenerateManyRequest(requests=some))

            await send(len(indices))
            async for message in call:
                ended = 0
                for found in message.answers:
                    counts[found.request_index] += len(found.response.chunk.token_ids)
                    if found.last:
                        ended += 1
                        latencies.append(time.perf_counter() - begun[found.request_index])
                if ended and len(begun) < len(requests):
                    await send(ended)
                elif ended:
                    await call.done_writing()
            if set(counts) != {order.max_tokens}:
                raise RuntimeError(f"asked for {order.max_tokens} tokens, got {counts}")

        asking, count = (clients_of_a_call, order.calls) if order.calls else (client, order.clients)
        await asyncio.gather(*(asking(index, 1) for index in range(count)))  # To warm up.
        latencies.clear()
        gc.disable()
        before, begun = cpu_seconds(order.pid), time.perf_counter()
        await asyncio.gather(*(asking(index, order.each) for index in range(count)))
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
