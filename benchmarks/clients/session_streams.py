"""The clients of the durability case: streams that start together, each on its own session.

Rounds with and without sessions alternate, so that other load on the machine affects both equally.

    python -m benchmarks.clients.session_streams < order.json
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import time
from dataclasses import asdict, dataclass

import grpc

from benchmarks.clients.streams import Round, Stream
from benchmarks.processes.machine import cpu_seconds
from benchmarks.processes.worker import Json, answer, measure
from elman.connection import call_metadata
from elman_protos import v1

_WARM_UP_TOKENS = 32
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True)
class StreamsOrder:
    """The requests that the clients send.

    Attributes:
        address: the server's address.
        pids: process ids of the server and of its session store.
        model: the model's name.
        vocabulary: size of the model's vocabulary.
        temperature: sampling temperature.
        seconds: rounds of each kind are repeated for at least this long.
        streams: number of streams per round.
        prompt_tokens: length of the prompt of each stream, which is random and unique.
        max_tokens: tokens that each stream generates.
    """

    address: str
    pids: list[int]
    model: str
    vocabulary: int
    temperature: float
    seconds: float
    streams: int
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Compared:
    """The rounds of both kinds.

    Attributes:
        plain: rounds without sessions.
        kept: rounds in which each stream has a request id and a session that was new and empty at the start.
    """

    plain: list[Round]
    kept: list[Round]


def measure_streams(order: StreamsOrder) -> Compared:
    """Run the clients in another process."""
    measured = measure("benchmarks.clients.session_streams", asdict(order))
    return Compared(*([_round(payload) for payload in measured[kind]] for kind in ("plain", "kept")))


def _round(payload: Json) -> Round:
    return Round(**{**payload, "streams": [Stream(**stream) for stream in payload["streams"]]})


def _measure(payload: Json) -> Json:
    return asdict(asyncio.run(_rounds(StreamsOrder(**payload))))


async def _rounds(order: StreamsOrder) -> Compared:
    async with grpc.aio.insecure_channel(order.address, options=_CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        clients = _Clients(order, channel)
        for kept in (False, True):
            await clients.round(_WARM_UP_TOKENS, kept=kept)
        gc.disable()
        compared = Compared([], [])
        started = time.perf_counter()
        while not compared.plain or time.perf_counter() - started < 2 * order.seconds:
            compared.plain.append(await clients.round(order.max_tokens, kept=False))
            compared.kept.append(await clients.round(order.max_tokens, kept=True))
        return compared


class _Clients:
    """All clients, on one connection."""

    def __init__(self, order: StreamsOrder, channel: grpc.aio.Channel) -> None:
        self._order = order
        self._generations = v1.InferenceServiceStub(channel)
        self._sessions = v1.SessionServiceStub(channel)
        self._random = random.Random(0)

    async def round(self, max_tokens: int, *, kept: bool) -> Round:
        messages = [self._message(max_tokens) for _ in range(self._order.streams)]
        if kept:
            await asyncio.gather(*map(self._create_session, messages))
        server_before, client_before = self._server_seconds(), time.process_time()
        started = time.perf_counter()
        streams = await asyncio.gather(*(self._generate(message, started) for message in messages))
        return Round(streams, self._server_seconds() - server_before, time.process_time() - client_before)

    async def _create_session(self, message: v1.GenerateRequest) -> None:
        session_id = secrets.token_hex(8)
        request = v1.CreateSessionRequest(session_id=session_id, model=self._order.model)
        await self._sessions.CreateSession(request, metadata=call_metadata("", session_id))
        message.session.session_id = session_id
        message.session.request_id = secrets.token_hex(8)

    async def _generate(self, message: v1.GenerateRequest, started: float) -> Stream:
        clock = time.perf_counter
        stream = Stream(clock() - started)
        times, counts = stream.times, stream.counts
        metadata = call_metadata("", message.session.session_id)
        async for response in self._generations.Generate(message, metadata=metadata):
            count = len(response.chunk.token_ids)
            if count:
                times.append(clock() - started)
                counts.append(count)
        if sum(counts) != message.max_tokens:
            raise RuntimeError(f"asked for {message.max_tokens} tokens, got {sum(counts)}")
        return stream

    def _message(self, max_tokens: int) -> v1.GenerateRequest:
        order = self._order
        return v1.GenerateRequest(
            model=order.model,
            tokens=v1.TokenSequence(ids=self._random.choices(range(order.vocabulary), k=order.prompt_tokens)),
            max_tokens=max_tokens,
            sampling=v1.SamplingDecoding(temperature=order.temperature),
            seed=self._random.getrandbits(62),
        )

    def _server_seconds(self) -> float:
        return sum(map(cpu_seconds, self._order.pids))


if __name__ == "__main__":
    answer(_measure)
