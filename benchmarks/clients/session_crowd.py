"""A client that creates many sessions, several of them concurrently.

python -m benchmarks.clients.session_crowd < order.json
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass

import grpc

from benchmarks.processes.worker import Json, answer, measure
from elman_protos import v1


@dataclass(frozen=True)
class CrowdOrder:
    """Sessions to create, all alike.

    Attributes:
        address: the server's address.
        model: the model's name.
        prompt: token ids of every session.
        names: the session ids.
        concurrency: number of sessions that are created concurrently.
        imported: import each session from a file, with a state of its own; otherwise fork them from one session.
    """

    address: str
    model: str
    prompt: list[int]
    names: list[str]
    concurrency: int
    imported: bool = False


def make_crowd(order: CrowdOrder) -> float:
    """Create the sessions in another process and return the duration in seconds."""
    return float(measure("benchmarks.clients.session_crowd", asdict(order))["seconds"])


def _measure(payload: Json) -> Json:
    return {"seconds": asyncio.run(_make(CrowdOrder(**payload)))}


async def _make(order: CrowdOrder) -> float:
    async with grpc.aio.insecure_channel(order.address) as channel:
        sessions = v1.SessionServiceStub(channel)
        make = await _creator(order, sessions)
        names = iter(order.names)
        started = time.perf_counter()
        await asyncio.gather(*(_make_each(make, names) for _ in range(order.concurrency)))
        return time.perf_counter() - started


async def _creator(order: CrowdOrder, sessions: v1.SessionServiceAsyncStub) -> Callable[[str], Awaitable[object]]:
    """Create a first session and return a function that creates another one from it."""
    first = secrets.token_hex(8)
    tokens = v1.TokenSequence(ids=order.prompt)
    await sessions.CreateSession(v1.CreateSessionRequest(session_id=first, model=order.model, tokens=tokens))
    if not order.imported:
        return lambda name: sessions.ForkSession(v1.ForkSessionRequest(session_id=first, new_session_id=name))
    file = (await sessions.ExportSession(v1.ExportSessionRequest(session_id=first))).content
    return lambda name: sessions.ImportSession(v1.ImportSessionRequest(content=file, session_id=name))


async def _make_each(make: Callable[[str], Awaitable[object]], names: Iterator[str]) -> None:
    for name in names:
        await make(name)


if __name__ == "__main__":
    answer(_measure)
