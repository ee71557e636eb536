"""The clients of the decoding case: streams that start together, some of which use a decoding method other than plain
sampling.

Rounds of each decoding method and plain rounds alternate, so that other load on the machine affects both equally.

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
    """A decoding method.

    Attributes:
        name: name of the method.
        fields: fields of the request, as JSON, in addition to the plain ones.
        every: every N-th stream uses the method, the others plain sampling.
        calls: number of calls per round, each of which may return several sequences.
        sequences: number of rows that each call uses.
    """

    name: str
    fields: Json
    every: int = 1
    calls: int = 64
    sequences: int = 1


@dataclass(frozen=True)
class DecodingOrder:
    """The requests that the clients send.

    Attributes:
        address: the server's address.
        pid: the server's process id.
        model: the model's name.
        vocabulary: size of the model's vocabulary.
        prompt_tokens: length of the prompt of each call, which is random and unique.
        max_tokens: tokens that each sequence generates.
        temperature: sampling temperature.
        rounds: number of rounds of each method.
        ways: the methods to measure, each compared with plain sampling.
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
    """The cost of a round.

    Attributes:
        steps: generating steps over all rows: one per token of each sequence or beam.
        seconds: duration of the round.
        server_cpu_seconds: CPU time of the server's process during the round.
    """

    steps: int
    seconds: float
    server_cpu_seconds: float


def measure_ways(order: DecodingOrder) -> dict[str, list[tuple[Spent, Spent]]]:
    """Return, by method, the plain round and the round of that method for each repeat."""
    measured = measure("benchmarks.clients.decoding_streams", asdict(order))
    return {name: [(Spent(**plain), Spent(**other)) for plain, other in rounds] for name, rounds in measured.items()}


def _measure(payload: Json) -> Json:
    ways = [Way(**way) for way in payload["ways"]]
    return asyncio.run(_rounds(DecodingOrder(**{**payload, "ways": ways})))


async def _rounds(order: DecodingOrder) -> Json:
    plain = Way("plain", {})
    async with grpc.aio.insecure_channel(order.address, options=_CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        clients = _Clients(order, v1.InferenceServiceStub(channel))
        measured: Json = {way.name: [] for way in order.ways}
        for way in (plain, *order.ways):  # Warm up whatever is created or compiled on first use.
            await clients.round(way)
        gc.disable()
        for _ in range(order.rounds):
            for way in order.ways:
                measured[way.name].append([asdict(await clients.round(plain)), asdict(await clients.round(way))])
        return measured


class _Clients:
    """All clients, on one connection."""

    def __init__(self, order: DecodingOrder, stub: v1.InferenceServiceAsyncStub) -> None:
        self._order = order
        self._stub = stub
        self._random = random.Random(0)

    async def round(self, way: Way) -> Spent:
        messages = [self._message(way if index % way.every == 0 else None) for index in range(way.calls)]
        before, started = cpu_seconds(self._order.pid), time.perf_counter()
        counts = await asyncio.gather(*map(self._generate, messages))
        seconds = time.perf_counter() - started
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
