"""A client that makes many sessions, many at once, in a process of its own.

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
    """Sessions to be made, all alike.

    Attributes:
        address: the server's.
        model: the model's name.
        prompt: what they hold.
        names: a name for each, which becomes its id.
        at_once: so many are being made at a time.
        imported: each is made from a file and has a state of its own; else they are forks of one session.
    """

    address: str
    model: str
    prompt: list[int]
    names: list[str]
    at_once: int
    imported: bool = False


def make_crowd(order: CrowdOrder) -> float:
    """Make them now, in another process; the seconds that it took."""
    return float(measure("benchmarks.clients.session_crowd", asdict(order))["seconds"])


def _measure(given: Json) -> Json:
    return {"seconds": asyncio.run(_make(CrowdOrder(**given)))}


async def _make(order: CrowdOrder) -> float:
    async with grpc.aio.insecure_channel(order.address) as channel:
        sessions = v1.SessionServiceStub(channel)
        make = await _way(order, sessions)
        names = iter(order.names)
        started = time.perf_counter()
        await asyncio.gather(*(_make_each(make, names) for _ in range(order.at_once)))
        return time.perf_counter() - started


async def _way(order: CrowdOrder, sessions: v1.SessionServiceAsyncStub) -> Callable[[str], Awaitable[object]]:
    """Of making one of them: from a first one, which is made now."""
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
