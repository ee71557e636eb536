"""The clients of the decoding case, in a process of their own: streams that start at once, some of which ask for
something beyond plain sampling.

Rounds of each way to decode and plain rounds take turns, so that what the machine does meanwhile befalls both.

    python -m benchmarks.clients.decoding_streams < order.json
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from dataclasses import asdict, dataclass

import grpc
from google.protobuf import json_format

from benchmarks.processes.machine import cpu_seconds
from benchmarks.processes.worker import Json, answer, measure
from elman_protos import v1

_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True)
class Way:
    """A way to decode.

    Attributes:
        name: of it.
        fields: of the request, as JSON, beside the plain ones.
        every: each so many-th stream asks for it, the others for plain sampling.
        calls: how many calls a round has, of which each may bring several sequences.
        sequences: how many rows each call takes.
    """

    name: str
    fields: Json
    every: int = 1
    calls: int = 64
    sequences: int = 1


@dataclass(frozen=True)
class DecodingOrder:
    """What to ask a server for.

    Attributes:
        address: the server's.
        pid: its process.
        model: the model's name.
        vocabulary: how many tokens it knows.
        prompt_tokens: of each call, random and nobody else's.
        max_tokens: of each sequence.
        temperature: of the sampling.
        rounds: of each way.
        ways: to measure, each against plain sampling.
    """

    address: str
    pid: int
    model: str
    vocabulary: int
    prompt_tokens: int
    max_tokens: int
    temperature: float
    rounds: int
    ways: list[Way]


@dataclass(frozen=True)
class Spent:
    """What a round has brought.

    Attributes:
        steps: that rows have taken to generate: one for each token of each sequence, or of each beam.
        seconds: that it took.
        server_cpu_seconds: of the server's process meanwhile.
    """

    steps: int
    seconds: float
    server_cpu_seconds: float


def measure_ways(order: DecodingOrder) -> dict[str, list[tuple[Spent, Spent]]]:
    """By way, the plain round and the round of that way, for each repeat."""
    found = measure("benchmarks.clients.decoding_streams", asdict(order))
    return {name: [(Spent(**plain), Spent(**other)) for plain, other in rounds] for name, rounds in found.items()}


def _measure(given: Json) -> Json:
    ways = [Way(**way) for way in given["ways"]]
    return asyncio.run(_rounds(DecodingOrder(**{**given, "ways": ways})))


async def _rounds(order: DecodingOrder) -> Json:
    plain = Way("plain", {})
    async with grpc.aio.insecure_channel(order.address, options=_CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        clients = _Clients(order, v1.InferenceServiceStub(channel))
        found: Json = {way.name: [] for way in order.ways}
        for way in (plain, *order.ways):  # What is opened or compiled when it is needed first.
            await clients.round(way)
        gc.disable()
        for _ in range(order.rounds):
            for way in order.ways:
                found[way.name].append([asdict(await clients.round(plain)), asdict(await clients.round(way))])
        return found


class _Clients:
    """All of them, on one connection."""

    def __init__(self, order: DecodingOrder, stub: v1.InferenceServiceAsyncStub) -> None:
        self._order = order
        self._stub = stub
        self._random = random.Random(0)

    async def round(self, way: Way) -> Spent:
        messages = [self._message(way if index % way.every == 0 else None) for index in range(way.calls)]
        before, begun = cpu_seconds(self._order.pid), time.perf_counter()
        counts = await asyncio.gather(*map(self._generate, messages))
        seconds = time.perf_counter() - begun
        expected = self._order.max_tokens * (1 if "beam" in way.fields else way.sequences)
        if any(count != expected for count in counts):
            raise RuntimeError(f"{way.name}: asked for {expected} tokens, got {min(counts)} to {max(counts)}")
        steps = self._order.max_tokens * way.calls * way.sequences
        return Spent(steps, seconds, cpu_seconds(self._order.pid) - before)

    async def _generate(self, message: v1.GenerateRequest) -> int:
        count = 0
        async for response in self._stub.Generate(message):
            count += len(response.chunk.token_ids)
        return count

    def _message(self, way: Way | None) -> v1.GenerateRequest:
        order = self._order
        message = v1.GenerateRequest(
            model=order.model,
            tokens=v1.TokenSequence(ids=self._random.choices(range(order.vocabulary), k=order.prompt_tokens)),
            max_tokens=order.max_tokens,
            sampling=v1.SamplingDecoding(temperature=order.temperature),
            seed=self._random.getrandbits(62),
        )
        if way is not None:
            json_format.ParseDict(way.fields, message)
        return message


if __name__ == "__main__":
    answer(_measure)
