"""One trial: sessions stream, servers are killed one at a time and started again, and in the end all is checked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from elman import Client
from tests.chaos.fleet import Balancer, Server
from tests.chaos.history import SessionHistory, Verdict, check
from tests.chaos.writers import new_history, read_back, repeat, write
from tests.support.redis_server import redis_running

_CONNECTIONS = 4  # that all writers share
_LEAST, _MOST = 0.05, 2.0  # seconds between the first tokens after a start and the next kill


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    Attributes:
        bundle: what is served.
        folder: for logs and stores.
        sessions: how many stream.
        kills: how many times a server is killed.
        seed: of the moments, of who is killed, of what is asked for.
        options: for `elman serve`, beside the store's.
        drains: whether every other kill is a polite one: SIGTERM, so that the server drains.
        rest: seconds that a session pauses after each call, so that a short trial leaves the cores to other tests.
    """

    bundle: Path
    folder: Path
    sessions: int = 64
    kills: int = 30
    seed: int = 0
    options: Sequence[str] = ()
    drains: bool = False
    rest: float = 0.0


@dataclass
class Outcome:
    """What has happened.

    Attributes:
        verdict: what the history says.
        kills: how many there were.
        busy_kills: how many of them while tokens were streaming.
        seconds: how long the streaming part took.
        received: how many tokens came, and when, seconds since the beginning.
        killed: when servers were killed.
    """

    verdict: Verdict
    kills: int
    busy_kills: int
    seconds: float
    received: list[tuple[float, int]] = field(repr=False)
    killed: list[float] = field(repr=False)


async def one_server(plan: Plan, advance: Callable[[str], None], *command: str) -> Outcome:
    """One server, which keeps its sessions in SQLite, is killed again and again.

    Args:
        plan: what is to happen.
        advance: called with what happens next, once a kill.
        command: what starts the server in place of `elman`.
    """
    options = [*plan.options, "--store", str(plan.folder / "sessions.db"), "--snapshot-steps", "64"]
    server = Server(plan.folder, "server", plan.bundle, options, *([command] if command else []))
    async with server:
        return await _attempt(plan, [server], server.address, advance)


async def behind_balancer(plan: Plan, advance: Callable[[str], None]) -> Outcome:
    """Two servers on one Redis, behind a balancer; one of them at a time is killed, or told to end.

    Args:
        plan: what is to happen.
        advance: called with what happens next, once a kill.
    """
    with redis_running(plan.folder) as redis:
        options = [*plan.options, "--store", redis.url, "--snapshot-steps", "64"]
        servers = [Server(plan.folder, f"server-{number}", plan.bundle, options) for number in (1, 2)]
        async with servers[0], servers[1], Balancer(plan.folder, servers) as balancer:
            return await _attempt(replace(plan, drains=True), servers, balancer.address, advance)


async def _attempt(plan: Plan, servers: Sequence[Server], address: str, advance: Callable[[str], None]) -> Outcome:
    """Run a trial.

    Args:
        plan: what is to happen.
        servers: that are running.
        address: where clients find them.
        advance: called with what happens next, once a kill.
    """
    histories = [new_history(number, plan.seed) for number in range(plan.sessions)]
    stop = asyncio.Event()
    sent = _Watch()
    async with _clients(address) as clients:
        writing = [
            asyncio.create_task(write(clients[number % _CONNECTIONS], history, plan.seed, plan.rest, stop, sent))
            for number, history in enumerate(histories)
        ]
        killing = asyncio.create_task(_kill(plan, servers, sent, advance))
        everyone = asyncio.gather(*writing)
        try:
            # Where every writer has met with a fault there is nobody left to be disturbed.
            await asyncio.wait((killing, everyone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.set()
            if everyone.done():
                killing.cancel()
            await everyone
        with contextlib.suppress(asyncio.CancelledError):
            await killing
        seconds = sent.now
        await asyncio.gather(*(read_back(clients[0], history) for history in histories))
    unbroken = await _unbroken(plan, histories)
    return Outcome(check(histories, unbroken), len(sent.killed), sent.busy_kills, seconds, sent.received, sent.killed)


async def _kill(plan: Plan, servers: Sequence[Server], sent: _Watch, advance: Callable[[str], None]) -> None:
    """Kill servers, one at a time, and start them again."""
    chosen = random.Random(plan.seed)
    for number in range(plan.kills):
        advance(f"kill {number + 1}")
        await sent.some()
        await asyncio.sleep(chosen.uniform(_LEAST, _MOST))
        server = chosen.choice(servers)
        sent.busy_kills += sent.lately()
        sent.killed.append(sent.now)
        if plan.drains and number % 2:
            await server.drain()
        else:
            server.kill()
        await server.start()
    await sent.some()


async def _unbroken(plan: Plan, histories: Sequence[SessionHistory]) -> dict[str, list[list[int]]]:
    """What the same calls give on a server that nobody kills."""
    server = Server(plan.folder, "unbroken", plan.bundle, plan.options)
    async with server, _clients(server.address) as clients:
        found = await asyncio.gather(
            *(repeat(clients[number % _CONNECTIONS], history) for number, history in enumerate(histories))
        )
    return {history.session_id: calls for history, calls in zip(histories, found, strict=True)}


@contextlib.asynccontextmanager
async def _clients(address: str) -> AsyncIterator[list[Client]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(address)) for _ in range(_CONNECTIONS)]


class _Watch:
    """Notes when tokens come, and tells when they flow."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._arrived = asyncio.Event()
        self.received: list[tuple[float, int]] = []
        self.killed: list[float] = []
        self.busy_kills = 0

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def __call__(self, tokens: int) -> None:
        self.received.append((self.now, tokens))
        self._arrived.set()

    async def some(self) -> None:
        """Return when tokens come again."""
        self._arrived.clear()
        await self._arrived.wait()

    def lately(self) -> bool:
        """Whether some came within the last fifth of a second."""
        return bool(self.received) and self.now - self.received[-1][0] < 0.2
