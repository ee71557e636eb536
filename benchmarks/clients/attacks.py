"""One client against all: what a careless or hostile client may send. Each attack goes on until its time is over.

This module runs in a process of its own, so that its work does not slow down the polite client that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save

from benchmarks.processes.worker import Json, answer
from elman_protos import v1

LANGUAGE, TAGS, TREES = "fp32", "tags", "trees"  # the models of the server
_MEBIBYTE = 2**20
_LIMIT = 4 * _MEBIBYTE  # of a message
# A client that reads nothing gets this much and no more.
_WINDOW = (("grpc.http2.lookahead_bytes", 65_535), ("grpc.http2.bdp_probe", 0))


class Attacker:
    """Connections to the server under attack.

    Args:
        address: its address.
        seconds: how long the attack goes on.
    """

    def __init__(self, address: str, seconds: float) -> None:
        self._address = address
        self._until = time.monotonic() + seconds
        self._channels: list[grpc.aio.Channel] = []
        self.inference, self.analysis, self.sessions = self.stubs()

    def channel(self, *options: tuple[str, Any], compression: grpc.Compression | None = None) -> grpc.aio.Channel:
        """Open another connection."""
        # Otherwise channels with equal options share a connection.
        own = ("grpc.use_local_subchannel_pool", 1)
        channel = grpc.aio.insecure_channel(self._address, (own, *options), compression)
        self._channels.append(channel)
        return channel

    def stubs(self) -> tuple[Any, Any, Any]:
        """The services, on another connection."""
        channel = self.channel()
        return v1.InferenceServiceStub(channel), v1.AnalysisServiceStub(channel), v1.SessionServiceStub(channel)

    @property
    def left(self) -> float:
        """Seconds that the attack still goes on."""
        return self._until - time.monotonic()

    async def repeat(self, call: Callable[[], Awaitable[Any]], at_once: int = 1, pause: float = 0.0) -> None:
        """Make a call again and again, from several tasks, whatever comes of it."""

        async def one() -> None:
            while self.left > 0:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                    async with asyncio.timeout(max(self.left, 0.01)):
                        await call()
                await asyncio.sleep(pause)

        await asyncio.gather(*(one() for _ in range(at_once)))

    async def hold(self, calls: list[Any]) -> None:
        """Read nothing of some calls until the attack is over."""
        await asyncio.sleep(max(self.left, 0))
        for call in calls:
            call.cancel()

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


async def _silence(*messages: Any) -> AsyncIterator[Any]:
    for message in messages:
        yield message
    await asyncio.Event().wait()


def _raw(channel: grpc.aio.Channel, service: str, method: str) -> Any:
    """A method that takes bytes and streams bytes, whatever they are."""
    return channel.stream_stream(f"/elman.v1.{service}/{method}")


async def empty_parts(attacker: Attacker) -> None:
    """A message with two million empty parts, from eight tasks."""
    method = _raw(attacker.channel(), "InferenceService", "GenerateMany")
    message = b"\x0a\x00" * (_LIMIT // 2)
    await attacker.repeat(lambda: _drain(method(iter([message]))), at_once=8)


async def compressed_parts(attacker: Attacker) -> None:
    """The same with eight million, which are 16 KB on the wire."""
    method = _raw(attacker.channel(compression=grpc.Compression.Gzip), "InferenceService", "GenerateMany")
    message = b"\x0a\x00" * (2 * _LIMIT)
    await attacker.repeat(lambda: _drain(method(iter([message]))), at_once=4)


async def large_messages(attacker: Attacker) -> None:
    """Messages over the limit."""
    request = v1.GenerateRequest(model=LANGUAGE, text="a" * (_LIMIT + 1))
    await attacker.repeat(lambda: _drain(attacker.inference.Generate(request)), at_once=4)


async def malformed_messages(attacker: Attacker) -> None:
    """Streams with a message that is none, 100 per second."""
    method = _raw(attacker.channel(), "InferenceService", "StreamClassify")
    await attacker.repeat(lambda: _drain(method(iter([b"\xff" * 12]))), at_once=2, pause=0.02)


async def cancelled_batches(attacker: Attacker) -> None:
    """Batch calls that are cancelled, 100 per second."""
    request = v1.GenerateManyRequest(requests=[v1.GenerateRequest(model=LANGUAGE, text="a", max_tokens=1000)] * 20)

    async def cancelled() -> None:
        call = attacker.inference.GenerateMany(_silence(request))
        await asyncio.sleep(0.01)
        call.cancel()

    await attacker.repeat(cancelled)


async def unread_exports(attacker: Attacker) -> None:
    """A session of four megabytes is exported a thousand times, and nothing is read."""
    await _create_long(attacker)
    method: Any = attacker.channel(*_WINDOW).unary_stream("/elman.v1.SessionService/ExportSession")
    request = v1.ExportSessionRequest(session_id="long").SerializeToString()
    await attacker.hold([method(request) for _ in range(1000)])


async def forks(attacker: Attacker) -> None:
    """A long session is forked 1,500 times."""
    await _create_long(attacker)
    for number in range(1500):
        if attacker.left > 0:
            request = v1.ForkSessionRequest(session_id="long", position=900_000 - number)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await attacker.sessions.ForkSession(request)


async def _create_long(attacker: Attacker) -> None:
    """Create a session of 970,000 tokens, piece by piece."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        await attacker.sessions.CreateSession(v1.CreateSessionRequest(model=TAGS, session_id="long"))
        for number in range(15):
            target = v1.SessionCall(session_id="long", request_id=str(number))
            await attacker.inference.Classify(v1.ClassifyRequest(text="a" * 64_000, session=target))


def _long_lists() -> Iterator[Callable[[Attacker], Any]]:
    ids = [1] * (_LIMIT - 1000)
    forbidden = v1.GenerateRequest(model=LANGUAGE, text="a", shaping=v1.Shaping(forbidden_token_ids=ids))
    yield lambda attacker: _drain(attacker.inference.Generate(forbidden))
    nodes = v1.Tree(nodes=v1.TreeNodes(nodes=[v1.TreeNode()] * (_LIMIT // 2 - 1000)))
    tree = v1.ClassifyRequest(model=TREES, tree=nodes)
    yield lambda attacker: attacker.inference.Classify(tree)
    tensors = save({f"state.{number}": np.zeros(1, np.int8) for number in range(50_000)}, {"checksum": "0"})
    file = v1.ImportSessionRequest(content=tensors[: _LIMIT - 1000])
    yield lambda attacker: attacker.sessions.ImportSession(file)
    tensor = v1.Tensor(data_type=v1.DATA_TYPE_FLOAT32, shape=[1] * (_LIMIT - 1000))
    dimensions = v1.ClassifyRequest(model=TAGS, tensor=tensor)
    yield lambda attacker: attacker.inference.Classify(dimensions)


async def long_lists(attacker: Attacker) -> None:
    """Lists of millions: forbidden tokens, nodes, tensors of a file, dimensions; from four tasks."""
    calls = itertools.cycle(list(_long_lists()))
    await attacker.repeat(lambda: next(calls)(attacker), at_once=4)


async def long_streams(attacker: Attacker) -> None:
    """200 streams of 65,536 tokens."""
    request = v1.GenerateRequest(model=LANGUAGE, text="a", max_tokens=65_536)
    await attacker.repeat(lambda: _drain(attacker.inference.Generate(request)), at_once=200)


async def wide_searches(attacker: Attacker) -> None:
    """Four searches with 64 beams."""
    beam = v1.BeamDecoding(width=64)
    request = v1.GenerateRequest(model=LANGUAGE, text="a", max_tokens=65_536, beam=beam)
    await attacker.repeat(lambda: _drain(attacker.inference.Generate(request)), at_once=4)


async def unread_streams(attacker: Attacker) -> None:
    """150 clients whose streams are never read."""
    request = v1.GenerateRequest(model=LANGUAGE, text="a", max_tokens=65_536).SerializeToString()
    channels = [attacker.channel(*_WINDOW) for _ in range(150)]
    methods: list[Any] = [channel.unary_stream("/elman.v1.InferenceService/Generate") for channel in channels]
    await attacker.hold([method(request) for method in methods])


async def scores(attacker: Attacker) -> None:
    """20 calls that score 2,000 candidates each."""
    candidates = [v1.AnalysisInput(text=f"candidate {number}") for number in range(2000)]
    request = v1.ScoreRequest(model=LANGUAGE, candidates=candidates)
    await attacker.repeat(lambda: _drain(attacker.analysis.Score(request)), at_once=20)


def _constrained(**expression: str) -> v1.GenerateRequest:
    return v1.GenerateRequest(model=LANGUAGE, text="a", max_tokens=2000, constraint=v1.Constraint(**expression))


async def ambiguous_grammars(attacker: Attacker) -> None:
    """A grammar with ever more readings, 100 times at once."""
    request = _constrained(lark_grammar='start: start start | "a"')
    await attacker.repeat(lambda: _drain(attacker.inference.Generate(request)), at_once=100)


async def slow_grammars(attacker: Attacker) -> None:
    """Schemas that take long to compile, each another one, 100 at once."""
    numbers = itertools.count(1000)

    def another() -> Any:
        schema = f'{{"type": "integer", "multipleOf": {next(numbers)}003}}'
        return _drain(attacker.inference.Generate(_constrained(json_schema=schema)))

    await attacker.repeat(another, at_once=100)


async def growing_grammars(attacker: Attacker) -> None:
    """32 expressions whose automata grow with the text."""
    requests = itertools.cycle([_constrained(regex=f"(.|\\n)*a(.|\\n){{{count}}}b(.|\\n)*") for count in range(20, 52)])
    await attacker.repeat(lambda: _drain(attacker.inference.Generate(next(requests))), at_once=32)


async def silent_streams(attacker: Attacker) -> None:
    """1,152 streams that send nothing after their config, and 10,000 that do not send one."""
    config = v1.StreamClassifyRequest(config=v1.StreamConfig(model=TAGS))
    calls = [attacker.inference.StreamClassify(_silence(config)) for _ in range(1152)]
    stubs = [attacker.stubs()[0] for _ in range(10)]
    calls += [stub.StreamClassify(_silence()) for stub in stubs for _ in range(1000)]
    await attacker.hold(calls)


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        empty_parts,
        compressed_parts,
        large_messages,
        malformed_messages,
        cancelled_batches,
        unread_exports,
        forks,
        long_lists,
        long_streams,
        wide_searches,
        unread_streams,
        scores,
        ambiguous_grammars,
        slow_grammars,
        growing_grammars,
        silent_streams,
    )
}


async def _attack(name: str, address: str, seconds: float) -> None:
    attacker = Attacker(address, seconds)
    try:
        await ATTACKS[name](attacker)
    finally:
        await attacker.close()


def _measure(order: Json) -> Json:
    asyncio.run(_attack(order["name"], order["address"], order["seconds"]))
    return {}


if __name__ == "__main__":
    answer(_measure)
