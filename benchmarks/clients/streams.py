"""Streaming clients, in one process: they record when each message arrived and how many tokens it carried.

The work per message is kept small, because the clients share the cores with the server.

    python -m benchmarks.clients.streams < order.json
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field

import grpc

from benchmarks.processes.machine import cpu_seconds
from benchmarks.processes.worker import Json, answer, measure
from elman_protos import v1


@dataclass(frozen=True)
class Request:
    """One generation request.

    Attributes:
        prompt_tokens: length of the prompt, which is random and unique.
        max_tokens: number of tokens to generate.
        at: when to send it, in seconds after the start of the round.
        background: exclude it from the measurement and cancel it when all other requests have finished.
    """

    prompt_tokens: int
    max_tokens: int
    at: float = 0.0
    background: bool = False


@dataclass(frozen=True)
class Target:
    """Where requests are sent.

    Attributes:
        address: the server's address.
        server_pid: the server's process id.
        model: the model's name.
    """

    address: str
    server_pid: int
    model: str


@dataclass(frozen=True)
class ClientOrder:
    """The requests that the clients send.

    Attributes:
        targets: each gets the same rounds, one after the other, so that a machine that gets faster and slower within
            seconds does so for all of them.
        vocabulary: size of the models' vocabulary.
        temperature: sampling temperature.
        seconds: rounds are repeated for at least this long for each target; 0 for one round.
        warm_up: requests of a warm-up round; may be empty.
        requests: requests of a round.
        connections: number of connections that the streams share; at most one per stream.
        concurrency: maximum number of running streams; 0 for no limit.
    """

    targets: list[Target]
    vocabulary: int
    temperature: float
    seconds: float
    warm_up: list[Request]
    requests: list[Request]
    connections: int
    concurrency: int = 0


@dataclass(frozen=True)
class Stream:
    """The result of one request.

    Attributes:
        started: when it was sent, in seconds after the start of the round.
        times: when each message with tokens arrived, likewise.
        counts: number of tokens of each of these messages.
    """

    started: float
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Round:
    """The results of one round.

    Attributes:
        streams: the results of the requests, in their order.
        server_cpu_seconds: CPU time of the server's process during the round.
        client_cpu_seconds: CPU time of the clients' process.
    """

    streams: list[Stream]
    server_cpu_seconds: float
    client_cpu_seconds: float


def measure_clients(order: ClientOrder) -> list[list[Round]]:
    """Run the clients in another process; return the rounds of each target."""
    measured = measure("benchmarks.clients.streams", asdict(order))
    return [
        [Round(**{**payload, "streams": [Stream(**stream) for stream in payload["streams"]]}) for payload in rounds]
        for rounds in measured["rounds"]
    ]


def _measure(payload: Json) -> Json:
    requests = {name: [Request(**request) for request in payload[name]] for name in ("warm_up", "requests")}
    targets = [Target(**target) for target in payload["targets"]]
    return {"rounds": asyncio.run(_rounds(ClientOrder(**{**payload, **requests, "targets": targets})))}


async def _rounds(order: ClientOrder) -> list[list[Json]]:
    async with contextlib.AsyncExitStack() as stack:
        stubs = [[await stack.enter_async_context(_connected(target)) for _ in range(_connections(order))]
                 for target in order.targets]  # fmt: skip
        for target, own in zip(order.targets, stubs, strict=True):
            await _round(order, target, own, order.warm_up, random.Random(0))
        gc.disable()
        rounds: list[list[Json]] = [[] for _ in order.targets]
        started, number = time.perf_counter(), 0
        while not number or time.perf_counter() - started < order.seconds * len(order.targets):
            number += 1
            for index in range(len(order.targets))[:: 1 if number % 2 else -1]:
                generator = random.Random(number)  # Prompts are new in every round, and equal for all targets.
                measured = await _round(order, order.targets[index], stubs[index], order.requests, generator)
                rounds[index].append(asdict(measured))
        return rounds


def _connections(order: ClientOrder) -> int:
    return min(order.connections, len(order.requests))


@contextlib.asynccontextmanager
async def _connected(target: Target) -> AsyncIterator[v1.InferenceServiceAsyncStub]:
    # Without a local pool, channels to the same address share one connection.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(target.address, options=options) as channel:
        await channel.channel_ready()
        yield v1.InferenceServiceStub(channel)


async def _round(
    order: ClientOrder,
    target: Target,
    stubs: Sequence[v1.InferenceServiceAsyncStub],
    requests: Sequence[Request],
    generator: random.Random,
) -> Round:
    messages = [_message(order, target, request, generator) for request in requests]
    server_before, client_before = cpu_seconds(target.server_pid), time.process_time()
    slots = asyncio.Semaphore(order.concurrency or len(requests))
    round_start = time.perf_counter()
    tasks = [
        asyncio.create_task(_stream(stubs[index % len(stubs)], request, message, round_start, slots))
        for index, (request, message) in enumerate(zip(requests, messages, strict=True))
    ]
    measured = [task for task, request in zip(tasks, requests, strict=True) if not request.background]
    await asyncio.gather(*measured)
    server_after, client_after = cpu_seconds(target.server_pid), time.process_time()
    for task in tasks:
        task.cancel()
    return Round(await asyncio.gather(*tasks), server_after - server_before, client_after - client_before)


async def _stream(
    stub: v1.InferenceServiceAsyncStub,
    request: Request,
    message: v1.GenerateRequest,
    round_start: float,
    slots: asyncio.Semaphore,
) -> Stream:
    if request.at:
        await asyncio.sleep(round_start + request.at - time.perf_counter())
    async with slots:
        return await _generate(stub, request, message, round_start)


async def _generate(
    stub: v1.InferenceServiceAsyncStub, request: Request, message: v1.GenerateRequest, round_start: float
) -> Stream:
    clock = time.perf_counter
    stream = Stream(clock() - round_start)
    times, counts = stream.times, stream.counts
    call = stub.Generate(message)
    try:
        async for response in call:
            count = len(response.chunk.token_ids)
            if count:
                times.append(clock() - round_start)
                counts.append(count)
    except asyncio.CancelledError:
        if not request.background:
            raise
        call.cancel()
        return stream
    if sum(counts) != request.max_tokens:
        raise RuntimeError(f"asked for {request.max_tokens} tokens, got {sum(counts)}")
    return stream


def _message(order: ClientOrder, target: Target, request: Request, generator: random.Random) -> v1.GenerateRequest:
    return v1.GenerateRequest(
        model=target.model,
        tokens=v1.TokenSequence(ids=generator.choices(range(order.vocabulary), k=request.prompt_tokens)),
        max_tokens=request.max_tokens,
        sampling=v1.SamplingDecoding(temperature=order.temperature),
        seed=generator.getrandbits(62),
    )


if __name__ == "__main__":
    answer(_measure)
