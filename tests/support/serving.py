"""Servers for tests: real gRPC over loopback, on any free port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from elman import Client
from elman_bundle import Bundle
from elman_server.application import Server, ServerOptions, serve_bundle
from elman_server.engine import ProviderChoice
from elman_server.rpc.mailbox import deliver_into
from elman_server.rpc.models import ServedModel
from elman_server.rpc.validation import Limits
from elman_server.scheduling import Rows, Scheduler
from tests.support.fake_engine import SIZE, FakeEngine, fake_bundle


@dataclass(frozen=True)
class Running:
    """A server that is running, and a client connected to it."""

    server: Server
    client: Client
    address: str

    async def until_idle(self) -> None:
        """Wait until no slot is in use and nobody waits."""
        async with asyncio.timeout(10):
            while any(model.running_count or model.waiting_count for model in await self.client.list_models()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_free(self, session_id: str) -> None:
        """Wait until no call runs on a session."""
        async with asyncio.timeout(10):
            while (await self.client.get_session(session_id)).running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def server_options(**changes: object) -> ServerOptions:
    return ServerOptions(**{"port": 0, "provider": ProviderChoice.CPU, "threads": 1, "drain_timeout": 5.0, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def serving(*bundles: Bundle, **changes: object) -> AsyncIterator[Running]:
    """A server of real bundles."""
    options = server_options(**changes)
    async with _running(options, lambda loop: [serve_bundle(bundle, options, loop) for bundle in bundles]) as running:
        yield running


@asynccontextmanager
async def serving_fake(
    engine: FakeEngine, *, every_step: bool = True, name: str = "fake", **changes: object
) -> AsyncIterator[Running]:
    """A server of the hand-computable model."""
    options = server_options(**{"limits": Limits(max_tokens=5000, input_tokens=1000, message_bytes=20_000), **changes})

    def make(loop: asyncio.AbstractEventLoop) -> list[ServedModel]:
        rows = Rows(
            name,
            engine,
            input_name="token",
            vocabulary_size=SIZE,
            label_output="labels",
            pace=options.pace(),
        )
        scheduler = Scheduler(name, rows, waiting_limit=options.waiting_limit, deliver=deliver_into(loop))
        return [ServedModel(fake_bundle(name, every_step=every_step), scheduler, "cpu")]

    async with _running(options, make) as running:
        yield running


@asynccontextmanager
async def _running(
    options: ServerOptions, make: Callable[[asyncio.AbstractEventLoop], list[ServedModel]]
) -> AsyncIterator[Running]:
    server = Server(options, make(asyncio.get_running_loop()))
    await server.start()
    address = f"127.0.0.1:{server.port}"
    try:
        async with Client(address, timeout=60) as client:
            yield Running(server, client, address)
    finally:
        await server.drain()
