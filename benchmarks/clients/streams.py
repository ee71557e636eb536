"""The clients, in one process that is not the server's: they note when each message came and how many tokens it had.

What is done for a message is kept light, because the clients share the cores with what they measure.

    python -m benchmarks.clients.streams < order.json
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import grpc

from benchmarks.processes.machine import cpu_seconds
from benchmarks.processes.worker import Json, answer, measure
from elman_protos import v1


@dataclass(frozen=True)
class Request:
    """One generation to ask for.

    Attributes:
        prompt_tokens: the length of its prompt, which is random and nobody else's.
        max_tokens: how many tokens to generate.
        at: seconds after the round's start.
        background: it is no part of the measurement: it is ended when all others have finished.
    """

    prompt_tokens: int
    max_tokens: int
    at: float = 0.0
    background: bool = False


@dataclass(frozen=True)
class ClientOrder:
    """What to ask a server for.

    Attributes:
        address: the server's.
        server_pid: its process.
        model: the model's name.
        vocabulary: how many tokens it knows.
        temperature: of the sampling.
        seconds: rounds are repeated until so many have passed; 0 for one round.
        warm_up: a round that is not counted; may be empty.
        requests: a round.
        connections: the streams are spread over so many; at most one each.
        at_once: so many streams run at most, and the next begins when one has ended; 0 for no limit.
    """

    address: str
    server_pid: int
    model: str
    vocabulary: int
    temperature: float
    seconds: float
    warm_up: list[Request]
    requests: list[Request]
    connections: int
    at_once: int = 0


@dataclass(frozen=True)
class Stream:
    """What came of one request.

    Attributes:
        started: when it was sent, seconds after the round's start.
        times: when each message that carries tokens came, likewise.
        counts: how many tokens it carried.
    """

    started: float
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Round:
    """All requests of a round, in their order.

    Attributes:
        streams: what came of each.
        server_cpu_seconds: of the server's process meanwhile.
        client_cpu_seconds: of this one.
    """

    streams: list[Stream]
    server_cpu_seconds: float
    client_cpu_seconds: float


def measure_clients(order: ClientOrder) -> list[Round]:
    """Run the clients now, in another process."""
    found = measure("benchmarks.clients.streams", asdict(order))
    return [
        Round(**{**given, "streams": [Stream(**stream) for stream in given["streams"]]}) for given in found["rounds"]
    ]


def _measure(given: Json) -> Json:
    requests = {name: [Request(**request) for request in given[name]] for name in ("warm_up", "requests")}
    return {"rounds": asyncio.run(_rounds(ClientOrder(**{**given, **requests})))}


async def _rounds(order: ClientOrder) -> list[Json]:
    # Without a pool of its own, a channel shares the connection of any other to the same address.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [
        grpc.aio.insecure_channel(order.address, options=options)
        for _ in range(min(order.connections, len(order.requests)))
    ]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        stubs = [v1.InferenceServiceStub(channel) for channel in channels]
        generator = random.Random(0)
        await _round(order, stubs, order.warm_up, generator)
        gc.disable()
        rounds: list[Json] = []
        started = time.perf_counter()
        while not rounds or time.perf_counter() - started < order.seconds:
            rounds.append(asdict(await _round(order, stubs, order.requests, generator)))
        return rounds
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _round(
    order: ClientOrder,
    stubs: Sequence[v1.InferenceServiceAsyncStub],
    requests: Sequence[Request],
    generator: random.Random,
) -> Round:
    messages = [_message(order, request, generator) for request in requests]
    server_before, client_before = cpu_seconds(order.server_pid), time.process_time()
    places = asyncio.Semaphore(order.at_once or len(requests))
    begun = time.perf_counter()
    tasks = [
        asyncio.create_task(_stream(stubs[index % len(stubs)], request, message, begun, places))
        for index, (request, message) in enumerate(zip(requests, messages, strict=True))
    ]
    measured = [task for task, request in zip(tasks, requests, strict=True) if not request.background]
    await asyncio.gather(*measured)
    server_after, client_after = cpu_seconds(order.server_pid), time.process_time()
    for task in tasks:
        task.cancel()
    return Round(await asyncio.gather(*tasks), server_after - server_before, client_after - client_before)


async def _stream(
    stub: v1.InferenceServiceAsyncStub,
    request: Request,
    message: v1.GenerateRequest,
    begun: float,
    places: asyncio.Semaphore,
) -> Stream:
    if request.at:
        await asyncio.sleep(begun + request.at - time.perf_counter())
    async with places:
        return await _generate(stub, request, message, begun)


async def _generate(
    stub: v1.InferenceServiceAsyncStub, request: Request, message: v1.GenerateRequest, begun: float
) -> Stream:
    clock = time.perf_counter
    stream = Stream(clock() - begun)
    times, counts = stream.times, stream.counts
    call = stub.Generate(message)
    try:
        async for response in call:
            count = len(response.chunk.token_ids)
            if count:
                times.append(clock() - begun)
                counts.append(count)
    except asyncio.CancelledError:
        if not request.background:
            raise
        call.cancel()
        return stream
    if sum(counts) != request.max_tokens:
        raise RuntimeError(f"asked for {request.max_tokens} tokens, got {sum(counts)}")
    return stream


def _message(order: ClientOrder, request: Request, generator: random.Random) -> v1.GenerateRequest:
    return v1.GenerateRequest(
        model=order.model,
        tokens=v1.TokenSequence(ids=generator.choices(range(order.vocabulary), k=request.prompt_tokens)),
        max_tokens=request.max_tokens,
        sampling=v1.SamplingDecoding(temperature=order.temperature),
        seed=generator.getrandbits(62),
    )


if __name__ == "__main__":
    answer(_measure)
