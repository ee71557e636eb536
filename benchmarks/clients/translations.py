"""The clients of the translation case: each sends its next request as soon as the previous translation is finished.

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
    """The requests that the clients send.

    Attributes:
        address: the server's address.
        pid: the server's process id.
        model: the model's name.
        sources: token ids of the sources, which the clients send repeatedly.
        clients: number of concurrent translations.
        each: number of translations that each client requests.
        max_tokens: tokens of each translation.
        calls: number of calls that the clients share; each finished translation is followed by the next request. 0:
            one call per translation.
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
    """The results of a round.

    Attributes:
        translations: number of translations.
        seconds: duration of the round.
        latencies: latency of each translation, in seconds.
        server_cpu_seconds: CPU time of the server's process during the round.
    """

    translations: int
    seconds: float
    latencies: list[float]
    server_cpu_seconds: float


def measure_translations(order: TranslationOrder) -> Translated:
    """Run the clients in another process."""
    return Translated(**measure("benchmarks.clients.translations", asdict(order)))


def _measure(payload: Json) -> Json:
    return asdict(asyncio.run(_round(TranslationOrder(**payload))))


async def _round(order: TranslationOrder) -> Translated:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(order.address) as channel:
        await channel.channel_ready()
        stub = v1.InferenceServiceStub(channel)

        def source_of(index: int, number: int) -> list[int]:
            return order.sources[(index + number * order.clients) % len(order.sources)]

        async def client(index: int, each: int) -> None:
            for number in range(each):
                started = time.perf_counter()
                await _translate(stub, _message(order, source_of(index, number)), order)
                latencies.append(time.perf_counter() - started)

        async def clients_of_a_call(first: int, each: int) -> None:
            call = stub.GenerateMany()
            indices = range(first, order.clients, order.calls)
            requests = [_message(order, source_of(index, number)) for number in range(each) for index in indices]
            sent_at: list[float] = []  # by request
            counts = [0] * len(requests)

            async def send(count: int) -> None:
                batch = requests[len(sent_at) : len(sent_at) + count]
                sent_at.extend([time.perf_counter()] * len(batch))
                await call.write(v1.GenerateManyRequest(requests=batch))

            await send(len(indices))
            async for message in call:
                finished = 0
                for answered in message.answers:
                    counts[answered.request_index] += len(answered.response.chunk.token_ids)
                    if answered.last:
                        finished += 1
                        latencies.append(time.perf_counter() - sent_at[answered.request_index])
                if finished and len(sent_at) < len(requests):
                    await send(finished)
                elif finished:
                    await call.done_writing()
            if set(counts) != {order.max_tokens}:
                raise RuntimeError(f"asked for {order.max_tokens} tokens, got {counts}")

        run_client, count = (clients_of_a_call, order.calls) if order.calls else (client, order.clients)
        await asyncio.gather(*(run_client(index, 1) for index in range(count)))  # warm-up
        latencies.clear()
        gc.disable()
        before, started = cpu_seconds(order.pid), time.perf_counter()
        await asyncio.gather(*(run_client(index, order.each) for index in range(count)))
        seconds = time.perf_counter() - started
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
