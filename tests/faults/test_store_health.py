"""Health tells whether the store of sessions takes changes; a clock that jumps deletes nothing; no path reaches a
client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from elman import Client, ElmanError, OverloadedError
from elman_bundle import Bundle
from elman_server.sessions import expiry
from elman_server.sessions.stores.memory import MemoryStore
from elman_server.sessions.stores.sqlite import SqliteStore
from tests.support.serving import Running, serving

Bundles = Mapping[str, Bundle]


async def until(running: Running, service: str, expected: str) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel, asyncio.timeout(10):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            found = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            if health_pb2.HealthCheckResponse.ServingStatus.Name(found.status) == expected:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("service", ["elman.v1.SessionService"])
async def test_health_of_sessions_follows_the_store(bundles: Bundles, tmp_path: Path, service: str) -> None:
    async with serving(bundles["tags"], store=str(tmp_path / "sessions.db")) as running:
        client, store = running.client, running.server._resources.sessions._store
        assert isinstance(store, SqliteStore)
        await until(running, service, "SERVING")
        store._database.connection.execute("PRAGMA query_only = 1")
        with pytest.raises(ElmanError, match="store: the store of sessions has failed"):
            await client.create_session()
        await until(running, service, "NOT_SERVING")
        await until(running, "", "SERVING")  # What needs no session is served.
        await until(running, "elman.v1.InferenceService", "SERVING")
        assert (await client.classify("abc")).steps
        store._database.connection.execute("PRAGMA query_only = 0")
        await until(running, service, "SERVING")
        await client.create_session()


async def ids(client: Client) -> set[str]:
    return {session.session_id async for session in client.list_sessions()}


async def test_a_full_store_in_memory_is_not_serving_until_it_has_room(bundles: Bundles) -> None:
    async with serving(bundles["tags"]) as running:
        client, store = running.client, running.server._resources.sessions._store
        assert isinstance(store, MemoryStore)
        await client.create_session(session_id="s")
        store._limit = 1000
        with pytest.raises(OverloadedError, match="no space left"):
            await client.create_session()
        await until(running, "elman.v1.SessionService", "NOT_SERVING")
        await client.delete_session("s")
        await until(running, "elman.v1.SessionService", "SERVING")


@pytest.mark.parametrize("failure", ["PRAGMA query_only = 1", "PRAGMA max_page_count = 1", "DROP TABLE segments"])
async def test_errors_of_a_store_do_not_tell_where_it_is(bundles: Bundles, tmp_path: Path, failure: str) -> None:
    async with serving(bundles["tags"], store=str(tmp_path / "sessions.db")) as running:
        store = running.server._resources.sessions._store
        assert isinstance(store, SqliteStore)
        store._database.connection.execute(failure)
        with pytest.raises(ElmanError) as caught:
            await running.client.create_session("hello " * 2000)
        assert caught.value.reason in {"STORE_UNAVAILABLE", "STORE_FULL"}
        assert str(tmp_path) not in str(caught.value)
        assert "sessions.db" not in str(caught.value)


async def test_a_clock_that_jumps_expires_nothing(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(expiry, "time", clock)
    async with serving(bundles["tags"], session_ttl=4.0) as running:
        client = running.client
        await client.create_session(session_id="idle")
        for jump in (365 * 86400.0, -365 * 86400.0):
            clock.time = lambda jump=jump: time.time() + jump
            await asyncio.sleep(1.2)
            assert await ids(client) == {"idle"}
        clock.time = lambda: time.time() + 365 * 86400.0
        async with asyncio.timeout(10):
            while await ids(client):  # noqa: ASYNC110 # What has really passed counts.
                await asyncio.sleep(0.1)
