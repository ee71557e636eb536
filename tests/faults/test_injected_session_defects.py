"""An exception anywhere in the sessions of a server or in their store fails one call, with a named error. Nothing that
was acknowledged is lost, every session continues to the byte as if nothing had happened, and the server serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from elman import Client, ElmanError, SessionExistsError, SessionNotFoundError
from elman_bundle import Bundle
from elman_server.sessions.active_generation import ActiveGeneration
from elman_server.sessions.calls.generation import SessionGenerator
from elman_server.sessions.coalescing import Coalescer
from elman_server.sessions.health import StoreHealth
from elman_server.sessions.journal import Journal
from elman_server.sessions.quota import SessionQuota
from elman_server.sessions.registry.cache import SessionCache
from elman_server.sessions.registry.claims import Claims
from elman_server.sessions.registry.leases import Leases
from elman_server.sessions.registry.registry import SessionRegistry
from elman_server.sessions.sessions import Sessions
from elman_server.sessions.state_layout import StateLayout
from elman_server.sessions.stores.memory import MemoryStore
from elman_server.sessions.stores.redis.connection import Connection
from elman_server.sessions.stores.redis.store import RedisStore
from elman_server.sessions.stores.sqlite.database import Database
from elman_server.sessions.stores.sqlite.segments import SegmentWriter
from elman_server.sessions.stores.sqlite.store import SqliteStore
from elman_server.sessions.stores.sqlite.writer import ChangeWriter
from tests.support.amount import examples
from tests.support.injection import nth, points_of, raising
from tests.support.redis_server import redis_is_installed, redis_running
from tests.support.serving import Running, serving

STORES: dict[str, tuple[type, ...]] = {
    "memory": (MemoryStore,),
    "sqlite": (SqliteStore, ChangeWriter, SegmentWriter, Database),
    "redis": (RedisStore, Connection),
}
# What every store goes through, and no error of which is known.
OURS = (
    Sessions, SessionRegistry, SessionCache, SessionQuota, Claims, Leases, Journal, StoreHealth, Coalescer,
    ActiveGeneration, SessionGenerator, StateLayout,
)  # fmt: skip
# Called while the server starts or ends, or once in seconds.
RARE = frozenset(
    {"start", "close", "stop", "hand_over", "_prepare", "_limit", "_check", "renew", "_renew", "expired", "_watch"}
)
# What is there to handle the defects of what it calls.
GUARDS = frozenset({
    "SessionRegistry.release", "Claims.remove", "_write_pending", "_report", "_take_outcome", "_finish_if_written",
    "_deliver", "_interrupt", "ActiveGeneration._advance", "Journal._apply",
})  # fmt: skip
NUMBERS = [1, 2, 4]  # which call raises
LENGTH = 16
CALL_TOKENS = 8
NAMED = {"STORE_UNAVAILABLE", "MODEL_FAILED"}
names = count()


class NeverError(ElmanError):
    """No call raises it."""


def cases() -> Iterator[Any]:
    for store, owners in STORES.items():
        marks = [pytest.mark.skipif(not redis_is_installed(), reason="needs Redis")] if store == "redis" else []
        points = [(owner, name, True) for owner, name in points_of(*owners, leave_out=RARE | GUARDS)]
        if store == "sqlite":
            points += [(owner, name, False) for owner, name in points_of(*OURS, leave_out=RARE | GUARDS)]
        for index, (owner, name, is_store) in enumerate(points):
            for number in examples([NUMBERS[index % len(NUMBERS)]], everything=NUMBERS):
                yield pytest.param(
                    store, owner, name, number, is_store, id=f"{store}-{owner.__name__}-{name}-{number}", marks=marks
                )


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Defects are logged, each with its traceback."""
    with capture_logs():
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(bundles: Mapping[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """A server of each store, by the store's name."""
    folder: Path = tmp_path_factory.mktemp("stores")
    running: dict[str, Running] = {}
    bundle = bundles["gru"]
    async with serving(bundle) as running["memory"], serving(bundle, store=str(folder / "s.db")) as running["sqlite"]:
        if not redis_is_installed():
            yield running
            return
        with redis_running(folder) as redis:
            async with serving(bundle, store=redis.url) as running["redis"]:
                yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(servers: dict[str, Running]) -> list[int]:
    """All tokens of a session that nothing happens to."""
    life = Life(servers["memory"].client, "expected")
    await life.live()
    assert life.errors == []
    return life.tokens


@dataclass
class Life:
    """A session from its creation to its end, with calls of all kinds.

    Attributes:
        client: makes the calls.
        name: the session's id.
        tokens: what it holds at its end.
        errors: of the calls that failed.
    """

    client: Client
    name: str
    tokens: list[int] = field(default_factory=list)
    errors: list[ElmanError] = field(default_factory=list)

    async def live(self) -> None:
        client, name, fork, copy = self.client, self.name, f"{self.name}-fork", f"{self.name}-copy"
        await self.attempt(lambda: client.create_session("ab", session_id=name, seed=5), SessionExistsError)
        while (left := LENGTH - (await self.attempt(lambda: client.get_session(name))).position) > 0:
            await self.generate(min(left, CALL_TOKENS))
        await self.attempt(lambda: client.fork_session(name, new_session_id=fork), SessionExistsError)
        await self.attempt(lambda: client.rewind_session(fork, 3))
        content = await self.attempt(lambda: client.export_session(name))
        await self.attempt(lambda: client.import_session(content, session_id=copy), SessionExistsError)
        assert {name, fork, copy} <= set(await self.attempt(self.listed))
        self.tokens = await self.read(name)
        assert await self.read(copy) == self.tokens
        assert await self.read(fork) == self.tokens[:3]
        for each in (name, fork, copy):
            await self.attempt(lambda each=each: client.delete_session(each), SessionNotFoundError)  # type: ignore[misc]

    async def generate(self, count: int) -> None:
        """Generate some tokens; every one that has arrived is in the session afterwards."""
        start = (await self.attempt(lambda: self.client.get_session(self.name))).position
        arrived: list[int] = []
        try:
            async for chunk in self.client.generate(session=self.name, max_tokens=count, temperature=1.0):
                arrived += chunk.token_ids
        except ElmanError as error:
            self.errors.append(error)
        tokens = await self.read(self.name)
        assert tokens[start : start + len(arrived)] == arrived

    async def read(self, name: str) -> list[int]:
        content = await self.attempt(lambda: self.client.session_tokens(name))
        return list(content.token_ids)

    async def listed(self) -> list[str]:
        return [session.session_id async for session in self.client.list_sessions()]

    async def attempt(self, call: Callable[[], Awaitable[Any]], done: type[ElmanError] = NeverError) -> Any:
        """Make a call, again if it fails; `done` says that the attempt before had an effect nevertheless."""
        for _ in range(3):
            try:
                return await call()
            except done:
                assert self.errors
                return None
            except ElmanError as error:
                self.errors.append(error)
        raise self.errors[-1]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("store", "owner", "name", "number", "is_store"), list(cases()))
async def test_a_defect_fails_one_call(
    servers: dict[str, Running], expected: list[int], store: str, owner: type, name: str, number: int, is_store: bool
) -> None:
    lives = [Life(servers[store].client, f"session-{next(names)}") for _ in range(2)]
    async with asyncio.timeout(15):
        with raising(owner, name, nth(number)):
            await asyncio.gather(*(life.live() for life in lives))
        errors = [error for life in lives for error in life.errors]
        assert len(errors) <= 1, errors
        for error in errors:
            assert error.reason in (NAMED if is_store else NAMED | {"INTERNAL"}), error
        assert [life.tokens for life in lives] == [expected] * 2
