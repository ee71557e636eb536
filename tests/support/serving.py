"""Servers for tests: real gRPC over loopback, on a free port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from elman import Client
from elman_bundle import Bundle
from elman_server.application import Server
from elman_server.configuration import scheduling_policy
from elman_server.engine import EnginePolicy
from elman_server.event_loop import ServerEventLoop
from elman_server.inference.delivery import deliver_into
from elman_server.inference.model import ServedModel
from elman_server.loading import serve_bundle
from elman_server.scheduling import RowBatch, Scheduler
from elman_server.settings import Settings
from tests.support.fake_engine import SIZE, FakeEngine, fake_bundle

# A run takes 1 or 4 steps, and graphs are opened when they are first needed. Opening graphs dominates the start of a
# server, and tests start hundreds.
QUICK_START = EnginePolicy(step_counts=(1, 4), warm_up=False)


@dataclass(frozen=True)
class Running:
    """A running server and a client connected to it."""

    server: Server
    client: Client
    address: str

    async def until_idle(self) -> None:
        """Wait until no slot is in use and no request waits."""
        async with asyncio.timeout(10):
            while any(model.running_count or model.waiting_count for model in await self.client.list_models()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_free(self, session_id: str) -> None:
        """Wait until no call runs on a session."""
        async with asyncio.timeout(10):
            while (await self.client.get_session(session_id)).running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def server_settings(**changes: object) -> Settings:
    """Return the settings of a test server.

    Args:
        changes: settings that differ from those of all test servers; and `memory_bytes` for idle sessions, which may
            be fewer than `session_memory` accepts.
    """
    memory_bytes = changes.pop("memory_bytes", None)
    settings = Settings.model_validate(
        {"listen": "127.0.0.1:0", "provider": "cpu", "threads": 1, "drain_timeout": 5.0, **changes}
    )
    if not isinstance(memory_bytes, int):
        return settings
    return settings.model_copy(update={"session_memory": memory_bytes / 2**20})


@asynccontextmanager
async def serving(*bundles: Bundle, engine: EnginePolicy = QUICK_START, **changes: object) -> AsyncIterator[Running]:
    """Run a server of real bundles.

    Args:
        bundles: the bundles to serve.
        engine: the thresholds of the engines.
        changes: settings, see `server_settings`.
    """
    settings = server_settings(**changes)
    policy = replace(scheduling_policy(settings), engine=engine)

    def make(loop: ServerEventLoop) -> list[ServedModel]:
        return [serve_bundle(bundle, settings, loop, policy=policy) for bundle in bundles]

    async with _running(settings, make) as running:
        yield running


@asynccontextmanager
async def serving_fake(
    engine: FakeEngine, *, every_step: bool = True, name: str = "fake", **changes: object
) -> AsyncIterator[Running]:
    """Run a server of the fake model."""
    limits = {"max_tokens_limit": 5000, "input_limit": 1000, "message_limit": 20_000}
    settings = server_settings(**{**limits, **changes})

    def make(loop: ServerEventLoop) -> list[ServedModel]:
        policy = scheduling_policy(settings)
        rows = RowBatch(name, engine, policy, input_name="token", vocabulary_size=SIZE, label_output="labels")
        scheduler = Scheduler(name, rows, policy, waiting_limit=settings.waiting_limit, deliver=deliver_into(loop))
        return [ServedModel(fake_bundle(name, every_step=every_step), scheduler, "cpu")]

    async with _running(settings, make) as running:
        yield running


@asynccontextmanager
async def _running(settings: Settings, make: Callable[[ServerEventLoop], list[ServedModel]]) -> AsyncIterator[Running]:
    server = Server(settings, make(ServerEventLoop.running()))
    await server.start()
    address = f"127.0.0.1:{server.port}"
    try:
        async with Client(address, timeout=60) as client:
            yield Running(server, client, address)
    finally:
        await server.drain()
