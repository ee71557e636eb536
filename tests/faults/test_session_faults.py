"""Faults of sessions: calls cancelled during a write, stores that refuse changes, sessions dropped from memory at the
wrong moment, forged files, misplaced rows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from elman import (
    Client,
    ElmanError,
    FinishReason,
    GenerationStream,
    InvalidRequestError,
    OverloadedError,
    Prediction,
    ServerError,
    Session,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    UnavailableError,
    v1,
)
from elman.errors import rpc_errors
from elman_bundle import Bundle
from elman_server.errors import SessionDamagedError, StoreConflictError, StoreError, StoreFullError
from elman_server.inference.prefix_cache import PrefixCache
from elman_server.sessions.changes import Advance, Change, Create, Delete, Rewind
from elman_server.sessions.file import _checksum
from elman_server.sessions.health import StoreHealth
from elman_server.sessions.journal import Journal
from elman_server.sessions.snapshots import Snapshot
from elman_server.sessions.stores.redis import RedisStore
from elman_server.sessions.stores.sqlite import SqliteStore
from elman_server.sessions.token_log import TokenLog
from tests.support.fake_engine import LABELS, MODULUS, FakeEngine, continuation
from tests.support.redis_server import redis_is_installed, redis_running
from tests.support.redis_sessions import created, stamped
from tests.support.reference import generate_alone
from tests.support.serving import Running, serving, serving_fake
from tests.support.stored_sessions import apply_changes, empty, is_earlier, long_session, same, tokens_of

Bundles = Mapping[str, Bundle]

PROMPT = "once upon a time é語"
SEED = 11
TEXT = "".join(np.random.default_rng(0).choice(list("abcdefgh ijk,.\n"), 3000).tolist())
MOST_SNAPSHOTS = 20  # 16, and a few that are under way


def alone(bundle: Bundle, text: str, max_tokens: int, seed: int = SEED) -> str:
    """The continuation of a session with the content `text`."""
    return generate_alone(bundle, text, max_tokens=max_tokens, temperature=1.0, seed=seed)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "elman.db"


def kept(path: Path, **changes: Any) -> dict[str, Any]:
    """The settings of a server that keeps its sessions in a file."""
    return {"store": str(path), **changes}


class Held:
    """Calls to a method of the store, blocked on their threads until they are released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        call = getattr(SqliteStore, name)
        self._begun, self._ask = threading.Event(), threading.Event()
        self._answered, self._go_on = threading.Event(), threading.Event()

        def held(store: SqliteStore, *given: Any) -> Any:
            self._begun.set()
            assert self._ask.wait(30)
            answer = call(store, *given)
            self._answered.set()
            assert self._go_on.wait(30)
            return answer

        monkeypatch.setattr(SqliteStore, name, held)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        self._ask.set()
        self._go_on.set()

    async def until_started(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 10)

    async def let_ask(self) -> None:
        """Let the store execute the call, but delay its answer."""
        self._ask.set()
        assert await asyncio.to_thread(self._answered.wait, 10)

    async def release(self) -> None:
        await self.let_ask()
        self._go_on.set()


async def cancelled_while_written(
    running: Running, monkeypatch: pytest.MonkeyPatch, call: Coroutine[Any, Any, object]
) -> None:
    """Cancel a call while its change is written; return when the call and the write have finished."""
    with Held(monkeypatch, "apply") as held:
        await cancelled(held, call)
        await held.release()
    await until_over(running)


async def cancelled(held: Held, call: Coroutine[Any, Any, object]) -> None:
    task = asyncio.create_task(call)
    await held.until_started()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)  # Then the server has noticed it, too.


async def until_over(running: Running) -> None:
    """Wait until no call is running and everything is written."""
    async with asyncio.timeout(10):
        while running.server.active_calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await until_written(running)


async def until_written(running: Running) -> None:
    async with asyncio.timeout(10):
        while running.server._resources.sessions._registry.journal._writer is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def check_agreement(running: Running, session_id: str) -> None:
    """Check that a session in memory equals the one in the store."""
    sessions = running.server._resources.sessions
    assert same(sessions._store.load(session_id), await sessions.get(session_id))


def check_accounts(running: Running) -> int:
    """Check the counted bytes of the sessions in memory, and return them."""
    cache = running.server._resources.sessions._registry.cache
    resident = sum(session.size for session in cache._sessions.values())
    assert cache._bytes == resident
    return resident


async def labels_behind(client: Client, text: str, count: int) -> tuple[object, ...]:
    """The labels of the last `count` tokens of a text that is read in one call."""
    return (await client.classify(text)).steps[-count:]


# Calls that are cancelled during a write.


async def test_after_a_rewind_cancelled_during_its_write_memory_equals_the_store(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bundles["lstm"], **kept(path, snapshot_steps=32)) as running:
        client = running.client
        await client.create_session(PROMPT, session_id="s", seed=SEED)
        text = PROMPT + await client.generate(session="s", max_tokens=100).text()
        await cancelled_while_written(running, monkeypatch, client.rewind_session("s", 50))
        assert (await client.get_session("s")).position == 50
        await check_agreement(running, "s")
        found = await client.generate("x", session="s", max_tokens=20).text()
        assert found == alone(bundles["lstm"], text[:50] + "x", 20)
        await check_agreement(running, "s")


async def test_a_delete_cancelled_during_its_write_leaves_nothing(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bundles["lstm"], **kept(path)) as running:
        client = running.client
        await client.create_session(PROMPT, session_id="s")
        await cancelled_while_written(running, monkeypatch, client.delete_session("s"))
        assert running.server._resources.sessions._store.load("s") is None
        with pytest.raises(SessionNotFoundError):
            await client.get_session("s")
        with pytest.raises(SessionNotFoundError):
            await client.generate("x", session="s").text()
        await client.create_session("abc", session_id="s", seed=SEED)
        assert await client.generate(session="s", max_tokens=20).text() == alone(bundles["lstm"], "abc", 20)
        check_accounts(running)


async def test_a_piece_follows_one_that_was_cancelled_during_its_write(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bundles["tags"], **kept(path)) as running:
        client = running.client
        await client.create_session(session_id="s")
        await client.classify("hello ", session="s")
        with Held(monkeypatch, "apply") as held:
            await cancelled(held, client.classify("aaa", session="s"))
            # Whether the store has it is not known yet: other calls wait.
            late = asyncio.create_task(client.classify("bbb", session="s", position=6))
            await asyncio.sleep(0.1)
            assert not late.done()
            await held.release()
        with pytest.raises(SessionConflictError, match=r"session\.position: got 6; session '.*' is at position 9"):
            await late
        await check_agreement(running, "s")
        found = await client.classify("bbb", session="s")
        assert found.session_position == 12
        assert found.steps == await labels_behind(client, "hello aaabbb", 3)
        await check_agreement(running, "s")
        assert (await client.session_tokens("s")).text == "hello aaabbb"


async def test_a_creation_cancelled_during_its_write_counts_once(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bundles["lstm"], **kept(path, sessions_per_caller=2)) as running:
        client = running.client
        await cancelled_while_written(running, monkeypatch, client.create_session(PROMPT, session_id="s", seed=SEED))
        await check_agreement(running, "s")
        check_accounts(running)
        assert await client.generate(session="s", max_tokens=20).text() == alone(bundles["lstm"], PROMPT, 20)
        await client.create_session("a")
        with pytest.raises(OverloadedError, match="a caller may have at most 2"):
            await client.create_session("b")
        assert not running.server._resources.sessions._quota._creating


# Changes after a refused one.


@pytest.mark.parametrize(
    "behind",
    [
        Advance("s", 3, 1.0, snapshot=Snapshot(3, b"the state of 7 7 7")),
        Advance("s", 3, 1.0, tokens_of(4)),
        Advance("s", 6, 1.0, tokens_of(4)),
        Rewind("s", 1, 0),
        Delete("s"),
    ],
)
def test_a_change_after_a_refused_one_in_its_batch_is_refused(path: Path, behind: Change) -> None:
    store = SqliteStore(path)
    session, other = empty(), empty("other")
    store.apply([Create(session), Create(other)])
    apply_changes(store, session, Advance("s", 0, 1.0, tokens_of(1, 2, 3)))
    wrong = Advance("s", 0, 1.0, tokens_of(7, 7, 7))
    first, second, third = store.apply([wrong, behind, Advance("other", 0, 1.0, tokens_of(5))])
    assert isinstance(first, StoreConflictError)
    assert isinstance(second, StoreConflictError)
    assert third is None  # It belongs to another session.
    assert same(store.load("s"), session)
    found = store.load("other")
    assert found is not None
    assert found.tokens == tokens_of(5)
    store.close()


@pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")
def test_redis_refuses_a_change_after_a_refused_one(tmp_path: Path) -> None:
    with redis_running(tmp_path) as redis, contextlib.closing(RedisStore(redis.url)) as store:
        session = created(store, tokens=tokens_of(1, 2, 3))
        wrong = Advance("s", 0, 1.0, tokens_of(7, 7, 7))
        for behind in (
            Advance("s", 3, 1.0, snapshot=Snapshot(3, b"the state of 7 7 7")),
            Advance("s", 3, 1.0, tokens_of(4)),
            Rewind("s", 1, 0),
        ):
            verdicts = store.apply(stamped(session, wrong, behind))
            assert [type(verdict) for verdict in verdicts] == [StoreConflictError, StoreConflictError]
            found = store.load("s")
            assert found is not None
            assert (found.tokens, found.snapshots, found.version) == (session.tokens, [], session.version)


async def test_changes_coalesced_after_a_failed_one_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(path)
    store.apply([Create(empty()), Create(empty("other"))])
    apply, writing, go_on = store.apply, threading.Event(), threading.Event()

    def failing_once(changes: list[Change]) -> list[StoreError | None]:
        if not writing.is_set():
            writing.set()
            assert go_on.wait(30)
            raise StoreFullError("no space for the first one")
        return apply(changes)

    monkeypatch.setattr(store, "apply", failing_once)
    journal = Journal(store, StoreHealth(store))
    told_of: list[tuple[str, StoreError | None]] = []

    def write(name: str, change: Change) -> None:
        journal.write(change, lambda error: told_of.append((name, error)))

    write("first", Advance("s", 0, 1.0, snapshot=Snapshot(0, b"state")))
    assert await asyncio.to_thread(writing.wait, 10)
    # Each alone would be accepted.
    write("second", Advance("s", 0, 1.0, tokens_of(1)))
    write("third", Advance("s", 1, 1.0, tokens_of(2)))
    write("other", Advance("other", 0, 1.0, tokens_of(3)))
    go_on.set()
    await journal.close()
    assert [name for name, _ in told_of] == ["first", "second", "third", "other"]
    assert [type(error) for _, error in told_of] == [StoreFullError, StoreFullError, StoreFullError, type(None)]
    assert same(store.load("s"), empty())
    found = store.load("other")
    assert found is not None
    assert found.tokens == tokens_of(3)
    store.close()


# Sessions that are loaded and dropped.


async def test_a_session_stays_in_memory_while_it_is_claimed(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, **kept(path)) as running:
        client, cache = running.client, running.server._resources.sessions._registry.cache
        await client.create_session(PROMPT, session_id="s", seed=SEED)
        find = cache.find

        async def evicting(session_id: str) -> Any:
            session = await find(session_id)
            with monkeypatch.context() as others_need_the_room:
                others_need_the_room.setattr(cache, "_memory_bytes", 0)
                cache.trim()
            return session

        monkeypatch.setattr(cache, "find", evicting)
        chunks = aiter(client.generate(session="s", max_tokens=5000, interval=0.0))
        text = (await anext(chunks)).text
        monkeypatch.setattr(cache, "find", find)
        await client.get_session("s")  # Meanwhile, another call finds the session that is advanced.
        text += "".join([chunk.text async for chunk in chunks])
        assert text == alone(bundle, PROMPT, 5000)
        assert (await client.get_session("s")).position == len(PROMPT) + 5000
        await check_agreement(running, "s")
        check_accounts(running)
        stream = client.generate("x", session="s", position=len(PROMPT) + 5000, max_tokens=20)
        assert await stream.text() == alone(bundle, PROMPT + text + "x", 20)


async def find_while_created(running: Running, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Task[Session], Held]:
    """Create a session while a search for it waits for the store."""
    with Held(monkeypatch, "apply") as writing:
        making = asyncio.create_task(running.client.create_session(PROMPT, session_id="s", seed=SEED))
        await writing.until_started()
        loading = Held(monkeypatch, "load")
        looking = asyncio.create_task(running.client.get_session("s"))
        await loading.until_started()
        await writing.release()
        await making
    return looking, loading


async def test_a_session_created_during_a_search_for_it_is_counted_once(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bundles["lstm"], **kept(path)) as running:
        looking, loading = await find_while_created(running, monkeypatch)
        with loading:
            await loading.release()
            assert (await looking).position == len(PROMPT)
        assert check_accounts(running) > 0
        await running.client.delete_session("s")
        assert check_accounts(running) == 0


async def test_reading_a_session_neither_affects_a_running_call_nor_waits_for_its_end(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, load = bundles["lstm"], SqliteStore.load

    def slowly(store: SqliteStore, session_id: str) -> Any:
        found = load(store, session_id)
        time.sleep(0.05)  # Longer than the time between two changes.
        return found

    monkeypatch.setattr(SqliteStore, "load", slowly)
    async with serving(bundle, **kept(path)) as running:
        client = running.client
        looking, loading = await find_while_created(running, monkeypatch)
        with loading:
            chunks = aiter(client.generate(session="s", max_tokens=10_000, interval=0.0))
            text = (await anext(chunks)).text
            await loading.release()
            assert (await looking).running
        text += "".join([chunk.text async for chunk in chunks])
        await check_agreement(running, "s")
        check_accounts(running)
        assert await client.generate("x", session="s", max_tokens=9).text() == alone(bundle, PROMPT + text + "x", 9)


async def test_a_session_loaded_before_a_call_is_not_used_after_it(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, **kept(path)) as running:
        client = running.client
        looking, loading = await find_while_created(running, monkeypatch)
        with loading:
            await loading.let_ask()
            text = await client.generate(session="s", max_tokens=20).text()
            await until_written(running)
            await loading.release()
            await looking
        assert (await client.get_session("s")).position == len(PROMPT) + 20
        await check_agreement(running, "s")
        assert await client.generate("x", session="s", max_tokens=9).text() == alone(bundle, PROMPT + text + "x", 9)


async def test_a_session_loaded_before_its_deletion_is_not_used_after_it(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bundles["lstm"], **kept(path)) as running:
        client = running.client
        looking, loading = await find_while_created(running, monkeypatch)
        with loading:
            await loading.let_ask()
            await client.delete_session("s")
            await loading.release()
            with contextlib.suppress(SessionNotFoundError):
                await looking
        with pytest.raises(SessionNotFoundError):
            await client.get_session("s")
        await client.create_session("abc", session_id="s", seed=SEED)
        assert await client.generate(session="s", max_tokens=9).text() == alone(bundles["lstm"], "abc", 9)


async def test_the_bytes_in_memory_are_counted_correctly_under_concurrency(bundles: Bundles, path: Path) -> None:
    async with serving(bundles["lstm"], **kept(path, memory_bytes=20_000)) as running:
        client = running.client

        async def look(session_id: str) -> None:
            for _ in range(8):
                with contextlib.suppress(SessionNotFoundError):
                    await client.get_session(session_id)

        for number in range(20):
            name = f"s{number}"
            await asyncio.gather(client.create_session("abc", session_id=name), *(look(name) for _ in range(3)))
        assert check_accounts(running) <= 20_000


async def test_a_long_generation_that_takes_too_much_memory_is_dropped_at_its_end(bundles: Bundles, path: Path) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, **kept(path, memory_bytes=40_000)) as running:
        client = running.client
        for name in ("long", "other"):
            await client.create_session(PROMPT, session_id=name, seed=SEED)
        text = await client.generate(session="long", max_tokens=12_000).text()
        await until_over(running)
        assert len(text) * 4 > 40_000
        assert check_accounts(running) <= 40_000
        assert "long" not in running.server._resources.sessions._registry.cache._sessions
        found = await client.generate("x", session="long", max_tokens=20).text()
        assert found == alone(bundle, PROMPT + text + "x", 20)
        assert await client.generate(session="other", max_tokens=20).text() == text[:20]


# Inputs and prompts that end at a snapshot.


@pytest.fixture
def kept_positions(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Record the positions at which states of inputs are kept."""
    positions = set[int]()
    keep = PrefixCache.keep

    def noted(cache: PrefixCache, hashes: Any, position: int, *given: Any) -> None:
        positions.add(position)
        keep(cache, hashes, position, *given)

    monkeypatch.setattr(PrefixCache, "keep", noted)
    return positions


async def test_inputs_that_end_at_a_snapshot_are_labelled(bundles: Bundles, kept_positions: set[int]) -> None:
    async with serving(bundles["classes"]) as running:
        client = running.client
        await client.classify(TEXT[:1500])
        positions = sorted(kept_positions)
        assert len(positions) >= 5
        for end in (around for position in positions for around in (position - 1, position, position + 1, position)):
            found = await client.classify(TEXT[:end])
            assert found == await client.classify(TEXT[:end], bypass_prefix_cache=True)


async def test_prompts_that_end_at_a_snapshot_are_continued(bundles: Bundles, kept_positions: set[int]) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle) as running:
        client = running.client
        await client.generate(TEXT[:1000], max_tokens=1).text()
        positions = sorted(kept_positions)
        assert len(positions) >= 4
        for end in (around for position in positions for around in (position, position + 1)):
            stream = client.generate(TEXT[:end], max_tokens=5, seed=SEED)
            assert await stream.text() == alone(bundle, TEXT[:end], 5)
            assert 0 <= stream.cached_token_count < end
        assert stream.cached_token_count == positions[-1]


async def test_prompts_and_inputs_use_the_prefixes_of_each_other() -> None:
    tokens = [1 + number % 8 for number in range(300)]
    async with serving_fake(FakeEngine(), every_step=False) as running:
        client = running.client
        for number in range(2):
            for end in (299, 200, 300, 256, 255, 299):
                # The first one of each round is a prompt or an input without a cached prefix.
                given = [number + 1, *tokens[:end]]
                if number:
                    assert (await client.classify(given)).labels[0].name == LABELS[sum(given) % MODULUS]
                stream = client.generate(given, max_tokens=3, temperature=0.0)
                assert await ids_of(stream) == continuation(given, 3)
                for read in (given[:-1], given):
                    assert (await client.classify(read)).labels[0].name == LABELS[sum(read) % MODULUS]


async def test_a_session_rewound_or_forked_exactly_to_a_snapshot_continues(bundles: Bundles) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, snapshot_steps=32) as running:
        client = running.client
        await client.create_session(TEXT[:200], session_id="s", seed=SEED)
        text = TEXT[:200] + await client.generate(session="s", max_tokens=100).text()
        kept_at = [known.position for known in (await running.server._resources.sessions.get("s")).snapshots]
        assert len(kept_at) > 5
        for position in (around for at in kept_at[::-1] for around in (at + 1, at)):
            fork = await client.fork_session("s", position=position)
            await client.rewind_session("s", position)
            expected = alone(bundle, text[:position], 5)
            for session_id in ("s", fork.session_id):
                assert await client.generate(session=session_id, max_tokens=5).text() == expected
            await client.rewind_session("s", position)


async def ids_of(stream: GenerationStream) -> list[int]:
    return [token for chunk in [chunk async for chunk in stream] for token in chunk.token_ids]


# Forged files with a correct checksum.


def forged(content: bytes, *, tokens: Any = None, **changes: str) -> bytes:
    tensors = load(content)
    size = int.from_bytes(content[:8], "little")
    metadata = dict(json.loads(content[8 : 8 + size])["__metadata__"]) | changes
    del metadata["checksum"]
    if tokens is not None:
        tensors["tokens"] = np.array(tokens, np.int32)
    return save(tensors, {**metadata, "checksum": _checksum(metadata, tensors)})


_FORGERIES: dict[str, dict[str, Any]] = {
    "a seed beyond 64 bits": {"seed": str(2**70)},
    "a seed below them": {"seed": str(-(2**63) - 1)},
    "a token outside the vocabulary": {"tokens": [1, 2, 3, 4, 5, 6, 100_000]},
    "a negative token": {"tokens": [1, 2, 3, 4, 5, 6, -1]},
    "no id": {"session_id": ""},
    "an id that is none": {"session_id": "no/id"},
    "far too many tokens behind the state": {"tokens": [1] * 2000},
    "a state of more steps than there are tokens": {"state_position": "8"},
    "a state of negative steps": {"state_position": "-1"},
    "steps that are no number": {"state_position": "many"},
    "tokens in two dimensions": {"tokens": [[1, 2, 3, 4, 5, 6, 7]]},
}


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "sqlite"])
async def test_forged_files_are_refused(bundles: Bundles, path: Path, in_memory: bool) -> None:
    store = "memory" if in_memory else str(path)
    async with serving(bundles["lstm"], store=store, input_limit=500) as running:
        client = running.client
        await client.create_session("abc def", session_id="true")
        content = await client.export_session("true")
        for name, changes in _FORGERIES.items():
            try:
                await client.import_session(forged(content, **changes), session_id="forged")
                pytest.fail(f"a file with {name} has been taken")
            except InvalidRequestError as error:
                refused = error
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, name
            assert list(refused.fields) == ["content"], name
            assert [found.session_id async for found in client.list_sessions()] == ["true"], name
        with pytest.raises(InvalidRequestError) as caught:
            await client.import_session(forged(content, session_id=""))
        assert list(caught.value.fields) == ["content"]
        # A consistent file is accepted.
        await client.import_session(forged(content, seed=str(SEED)), session_id="forged")
        assert await client.generate(session="forged", max_tokens=9).text() == alone(bundles["lstm"], "abc def", 9)


# Repeated calls.


async def test_a_request_id_belongs_to_one_kind_of_call() -> None:
    async with (
        serving_fake(FakeEngine()) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = v1.InferenceServiceStub(channel)

        async def generate(call: v1.SessionCall) -> None:
            async for _ in stub.Generate(v1.GenerateRequest(text="ab", session=call)):
                pass

        async def classify(call: v1.SessionCall) -> None:
            await stub.Classify(v1.ClassifyRequest(text="ab", session=call))

        calls: list[Callable[[v1.SessionCall], Awaitable[None]]] = [generate, classify]
        for first, second in (calls, calls[::-1]):
            session = await running.client.create_session("abc")
            call = v1.SessionCall(session_id=session.session_id, request_id="once")
            await first(call)
            await first(call)
            before = (await running.client.get_session(session.session_id)).position
            with (
                pytest.raises(InvalidRequestError, match=r"a different request on session '.*' has used it") as caught,
                rpc_errors("here"),
            ):
                await second(call)
            assert caught.value.reason == "REQUEST_MISMATCH"
            assert (await running.client.get_session(session.session_id)).position == before


async def test_text_and_labels_on_one_session_depend_on_all_its_tokens() -> None:
    stream = np.random.default_rng(0)
    for every_step in (True, False):
        async with serving_fake(FakeEngine(), every_step=every_step) as running:
            client, held = running.client, list[int]()
            session = (await client.create_session()).session_id
            for _ in range(30):
                new = stream.integers(1, 9, stream.integers(1, 6)).tolist()
                if stream.random() < 0.5:
                    found = await client.classify(new, session=session)
                    sums = [LABELS[sum(held + new[:end]) % MODULUS] for end in range(1, len(new) + 1)]
                    shown = [step.name for step in found.steps] if every_step else [found.labels[0].name]
                    assert shown == (sums if every_step else sums[-1:])
                    held += new
                else:
                    new = new[: len(new) if stream.random() < 0.5 or not held else 0]  # Possibly empty.
                    call = client.generate(new, session=session, max_tokens=4, temperature=0.0)
                    held += [*new, *continuation(held + new, 4)]
                    assert await ids_of(call) == held[-4:]


async def test_a_finished_call_is_replayed_while_another_one_runs(bundles: Bundles) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle) as running:
        client = running.client
        await client.create_session(PROMPT, session_id="s", seed=SEED)
        call: dict[str, Any] = {"session": "s", "max_tokens": 5, "request_id": "one"}
        one = await client.generate("x", **call).text()
        chunks = aiter(client.generate("y", session="s", max_tokens=60_000, interval=0.0, request_id="two"))
        await anext(chunks)
        stream = client.generate("x", **call)
        assert await stream.text() == one == alone(bundle, PROMPT + "x", 5)
        assert stream.session_position == len(PROMPT) + 6
        assert (await client.get_session("s")).running
        with pytest.raises(InvalidRequestError, match=r"a different request on session '.*' has used it"):
            await client.generate("z", **call).text()
        with pytest.raises(SessionConflictError, match="a call is running on this session"):
            await client.generate("x", session="s", request_id="three").text()


async def test_an_input_repeated_while_it_is_read_gets_the_same_answer() -> None:
    engine = FakeEngine()
    async with serving_fake(engine) as running:
        session = (await running.client.create_session()).session_id
        engine.gate.clear()
        call: dict[str, Any] = {"session": session, "request_id": "once", "position": 0}
        tasks = [asyncio.create_task(running.client.classify("abc", **call)) for _ in range(3)]
        await asyncio.sleep(0.1)
        engine.gate.set()
        first, *others = await asyncio.gather(*tasks)
        assert others == [first, first]
        assert [step.name for step in first.steps] == [LABELS[1], LABELS[3], LABELS[6]]
        assert (await running.client.get_session(session)).position == 3


# Expiry.


async def test_a_session_used_after_the_search_for_expired_ones_is_not_deleted(
    bundles: Bundles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elman_server.sessions.expiry._MIN_INTERVAL", 0.05)
    expired, looked, go_on = SqliteStore.expired, threading.Event(), threading.Event()

    def once(store: SqliteStore, before: float) -> list[str]:
        found = [] if go_on.is_set() else expired(store, before)
        if len(found) == 2:
            looked.set()
            assert go_on.wait(30)
        return found if len(found) == 2 else []

    monkeypatch.setattr(SqliteStore, "expired", once)
    async with serving(bundles["lstm"], **kept(path, session_ttl=0.4)) as running:
        client = running.client
        for name in ("unused", "used"):
            await client.create_session(PROMPT, session_id=name, seed=SEED)
        assert await asyncio.to_thread(looked.wait, 10)
        text = await client.generate(session="used", max_tokens=5).text()
        go_on.set()
        async with asyncio.timeout(10):
            while [found.session_id async for found in client.list_sessions()] != ["used"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        more = await client.generate(session="used", max_tokens=5).text()
        assert text + more == alone(bundles["lstm"], PROMPT, 10)


# Damage.


def damage(running: Running, statement: str) -> None:
    """Damage the file of a server, and drop its sessions from memory."""
    store = running.server._resources.sessions._store
    assert isinstance(store, SqliteStore)
    store._database.connection.execute(statement)
    cache = running.server._resources.sessions._registry.cache
    for session_id in list(cache._sessions):
        cache.drop(session_id)


async def test_a_damaged_session_can_be_deleted_and_its_id_reused(bundles: Bundles, path: Path) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, **kept(path)) as running:
        client = running.client
        for name in ("damaged", "sound"):
            await client.create_session(PROMPT, session_id=name, seed=SEED)
            await client.generate(session=name, max_tokens=30, request_id="once").text()
        damage(running, "UPDATE sessions SET seed = 8 WHERE session_id = 'damaged'")
        for call in (client.get_session("damaged"), client.generate(session="damaged", max_tokens=1).text()):
            with pytest.raises(ServerError, match=r"session_id: got 'damaged'; its record in .* is damaged") as caught:
                await call
            assert caught.value.reason == "SESSION_DAMAGED"
        with pytest.raises(SessionExistsError):
            await client.create_session("a", session_id="damaged")
        await client.delete_session("damaged")
        with pytest.raises(SessionNotFoundError):
            await client.get_session("damaged")
        with pytest.raises(SessionNotFoundError):
            await client.delete_session("damaged")
        await client.create_session("abc", session_id="damaged", seed=SEED)
        call_again = client.generate(session="damaged", max_tokens=30, request_id="once")
        assert await call_again.text() == alone(bundle, "abc", 30)
        damage(running, "SELECT 1")
        assert (await client.session_tokens("damaged")).text == "abc" + alone(bundle, "abc", 30)
        assert (await client.get_session("sound")).position == len(PROMPT) + 30


@pytest.mark.parametrize("column", ["seed", "created", "used", "position"])
async def test_a_damaged_row_hides_no_other_session(bundles: Bundles, path: Path, column: str) -> None:
    async with serving(bundles["lstm"], **kept(path)) as running:
        client = running.client
        for name in ("a", "damaged", "z"):
            await client.create_session(PROMPT, session_id=name)
        damage(running, f"UPDATE sessions SET {column} = 'x' WHERE session_id = 'damaged'")
        with pytest.raises(ElmanError) as caught:
            await client.get_session("damaged")
        assert caught.value.reason == "SESSION_DAMAGED"
        assert {"a", "z"} <= {found.session_id async for found in client.list_sessions()}
        await client.delete_session("damaged")
        assert [found.session_id async for found in client.list_sessions()] == ["a", "z"]


_OTHER = "(SELECT key FROM sessions WHERE session_id = 'other')"
_MISPLACED = {
    "segments swapped": "UPDATE segments SET number = 1 - number + 10 WHERE number < 2;"
    "UPDATE segments SET number = number - 10 WHERE number >= 10",
    "segments one further": "UPDATE segments SET number = number + 11; UPDATE segments SET number = number - 10",
    "a position that is smaller": "UPDATE sessions SET position = position - 5",
    "a negative position": "UPDATE sessions SET position = -5",
    "a position that is text": "UPDATE sessions SET position = 'x'",
    "states that are text": "UPDATE snapshots SET state = 'text'",
    "states at text": "UPDATE snapshots SET position = 'x' || position",
    "states swapped": "UPDATE snapshots SET position = 100000 - position;"
    "UPDATE snapshots SET position = position - 100000 + 3100",
    "tokens that are text": "UPDATE segments SET tokens = 'text'",
    "tokens that are a number": "UPDATE segments SET tokens = 5 WHERE number = 1",
    "checksums that are text": "UPDATE segments SET checksum = 'x'; UPDATE snapshots SET checksum = 'x';"
    "UPDATE calls SET checksum = 'x'",
    "calls that begin at text": "UPDATE calls SET start = 'x'",
    "tokens of another session": f"DELETE FROM segments WHERE key = {_OTHER}; UPDATE segments SET key = {_OTHER}",
    "one segment of another session": f"DELETE FROM segments WHERE key = {_OTHER} AND number = 1;"
    f"UPDATE segments SET key = {_OTHER} WHERE number = 1",
    "states of another session": f"DELETE FROM snapshots WHERE key = {_OTHER}; UPDATE snapshots SET key = {_OTHER}",
    "calls of another session": f"DELETE FROM calls WHERE key = {_OTHER}; UPDATE calls SET key = {_OTHER}",
    "everything of another session": "".join(
        f"DELETE FROM {table} WHERE key = {_OTHER}; UPDATE {table} SET key = {_OTHER};"
        for table in ("segments", "snapshots", "calls")
    ),
}


@pytest.mark.parametrize("name", _MISPLACED)
def test_misplaced_rows_are_never_used(path: Path, name: str) -> None:
    store = SqliteStore(path)
    session = long_session(store)
    # Another session of the same length, with states and calls at the same positions.
    other = replace(
        session,
        session_id="other",
        tokens=TokenLog(session.tokens[::-1]),
        snapshots=[replace(known, state=known.state[::-1]) for known in session.snapshots],
        calls={name: replace(call, answer=b"another") for name, call in session.calls.items()},
    )
    store.apply([Create(other)])
    store.close()
    connection = sqlite3.connect(path)
    connection.executescript(_MISPLACED[name])
    connection.close()
    store = SqliteStore(path)
    found_damage = False
    for whole in (session, other):
        try:
            found = store.load(whole.session_id)
        except SessionDamagedError:
            assert name == "a position that is text"  # Otherwise a part of the session is usable.
            found_damage = True
            continue
        assert found is not None
        found_damage |= not same(found, whole)
        assert is_earlier(found, whole)
        # The session continues from there, undamaged.
        apply_changes(store, found, Advance(found.session_id, found.position, 4.0, tokens_of(*range(2000))))
        assert same(store.load(found.session_id), found)
    assert found_damage
    store.close()


def test_a_position_beyond_the_tokens_is_not_used(path: Path) -> None:
    store = SqliteStore(path)
    session = long_session(store)
    store._database.connection.execute("UPDATE sessions SET position = position + 5")
    assert same(store.load("s"), session)
    apply_changes(store, session, Advance("s", session.position, 4.0, tokens_of(*range(2000))))
    assert same(store.load("s"), session)
    store.close()


# The number of snapshots.


async def test_a_long_session_keeps_a_bounded_number_of_snapshots(bundles: Bundles, path: Path) -> None:
    async with serving(bundles["lstm"], bundles["tags"], **kept(path, snapshot_steps=32)) as running:
        client, sessions = running.client, running.server._resources.sessions

        async def count_snapshots(session_id: str) -> int:
            await check_agreement(running, session_id)
            return len((await sessions.get(session_id)).snapshots)

        await client.create_session("ab", session_id="generated", model="lstm", seed=SEED)
        text = await client.generate(session="generated", max_tokens=4000).text()
        assert 5 <= await count_snapshots("generated") <= MOST_SNAPSHOTS
        await client.create_session(TEXT, session_id="created", model="lstm", seed=SEED)
        assert 5 <= await count_snapshots("created") <= MOST_SNAPSHOTS
        await client.create_session(session_id="read", model="tags")
        for _ in range(3):  # Each reading brings as many as are allowed, and finds as many.
            await client.classify(TEXT, session="read")
            assert 5 <= await count_snapshots("read") <= 2 * MOST_SNAPSHOTS
        # The snapshots of one reading are spread over it, so a rewound session is not read again from its start.
        for name, held in (("generated", "ab" + text), ("created", TEXT)):
            position = len(held) // 2
            await client.rewind_session(name, position)
            assert name == "generated" or (await sessions.get(name)).snapshots[-1].position > position // 2
            found = await client.generate(session=name, max_tokens=9).text()
            assert found == alone(bundles["lstm"], held[:position], 9)


# Stores that refuse changes.


async def test_an_input_that_does_not_fit_into_the_store_leaves_no_trace(bundles: Bundles, path: Path) -> None:
    async with serving(bundles["tags"], **kept(path)) as running:
        client, store = running.client, running.server._resources.sessions._store
        assert isinstance(store, SqliteStore)
        await client.create_session(session_id="s")
        await client.classify("hello ", session="s")
        (pages,) = store._database.connection.execute("PRAGMA page_count").fetchone()
        store._database.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        call: dict[str, Any] = {"session": "s", "request_id": "long"}
        with pytest.raises(OverloadedError, match="there is no space left for sessions") as caught:
            await client.classify(TEXT * 5, **call)
        assert caught.value.reason == "STORE_FULL"
        content = await client.session_tokens("s")
        assert (content.text, content.session.running) == ("hello ", False)
        await check_agreement(running, "s")
        check_accounts(running)
        store._database.connection.execute("PRAGMA max_page_count = 100000")
        found = await client.classify("abc", session="s", position=6)
        assert found.steps == await labels_behind(client, "hello abc", 3)
        again = await client.classify("def", **call)  # The request id is free, since the call left no trace.
        assert again.steps == await labels_behind(client, "hello abcdef", 3)


async def test_the_call_after_a_conflict_with_the_store_succeeds(bundles: Bundles, path: Path) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, bundles["tags"], **kept(path)) as running:
        client, store = running.client, running.server._resources.sessions._store
        x = bundle.text_vocabulary("text").encode("xyz").tolist()

        def move_on(session_id: str, position: int) -> None:
            assert store.apply([Advance(session_id, position, 9.0, tokens_of(*x))]) == [None]

        await client.create_session(PROMPT, session_id="text", model="lstm", seed=SEED)
        text = PROMPT + await client.generate(session="text", max_tokens=10).text()
        move_on("text", len(text))
        with pytest.raises(UnavailableError, match="is not at position") as caught:
            await client.generate("q", session="text", max_tokens=10).text()
        assert caught.value.reason == "STORE_UNAVAILABLE"
        await until_over(running)
        assert await client.generate("q", session="text", max_tokens=10).text() == alone(bundle, f"{text}xyzq", 10)
        await check_agreement(running, "text")

        await client.create_session(session_id="labels", model="tags")
        await client.classify("hello ", session="labels")
        move_on("labels", 6)
        with pytest.raises(UnavailableError, match="is not at position"):
            await client.classify("q", session="labels")
        found = await client.classify("q", session="labels")
        assert found.steps == (await client.classify("hello xyzq", model="tags")).steps[-1:]
        await check_agreement(running, "labels")
        check_accounts(running)


# Begin and end tokens.


async def test_a_session_contains_the_begin_token_once(ends: Bundle) -> None:
    async with serving(ends) as running:
        client = running.client

        async def fresh(prompt: str) -> list[int]:
            return await ids_of(client.generate(prompt, max_tokens=40, seed=3))

        async def check(session_id: str, prompt: str, text: str, prompt_tokens: int) -> None:
            """Check that a session continues like a text that is given in one call."""
            before = (await client.get_session(session_id)).position
            stream = client.generate(prompt, session=session_id, max_tokens=40, seed=3)
            assert await ids_of(stream) == await fresh(text)
            assert (stream.session_position_before, stream.prompt_token_count) == (before, prompt_tokens)
            assert stream.session_position == before + prompt_tokens + stream.generated_token_count

        await client.create_session(session_id="empty")
        assert (await client.get_session("empty")).position == 0
        await check("empty", "", "", 1)
        for position, prompt, text, prompt_tokens in (
            (0, "", "", 1),
            (0, "ab", "ab", 3),
            (3, "c", "abc", 1),
            (4, "", "abc", 0),
            (1, "", "", 0),  # It contains the begin token only.
            (1, "b", "b", 1),
            (0, "c", "c", 2),
        ):
            assert (await client.rewind_session("empty", position)).position == position
            await check("empty", prompt, text, prompt_tokens)
        # A session created with a prompt contains the begin token from the start.
        assert (await client.create_session("ab", session_id="full")).position == 3
        await check("full", "", "ab", 0)
        for position, prompt, text, prompt_tokens in ((0, "", "", 1), (0, "ab", "ab", 3), (2, "c", "ac", 1)):
            fork = await client.fork_session("full", position=position)
            assert fork.position == position
            await check(fork.session_id, prompt, text, prompt_tokens)


async def test_after_an_end_token_another_seed_continues_like_a_complete_text(ends: Bundle) -> None:
    async with serving(ends, snapshot_steps=4) as running:
        client = running.client
        await client.create_session("ab", session_id="s", seed=0)
        held, counts = ends.text_vocabulary("text").encode("ab").tolist(), []
        for seed in range(40):
            new = [2 + seed % 3] * (seed % 4 == 3)
            call: dict[str, Any] = {"seed": seed, "max_tokens": 1000}
            stream = client.generate(new, session="s", request_id=f"call {seed}", **call)
            found = await ids_of(stream)
            assert found == await ids_of(client.generate(held + new, bypass_prefix_cache=True, **call))
            assert stream.finish_reason is FinishReason.END_TOKEN
            held += new + found
            counts.append(len(found))
            content = await client.session_tokens("s")
            assert content.token_ids == (0, *held)  # The end token is not a part of it.
            assert stream.session_position == len(held) + 1
            # A replay, and another call with the same seed, end in the same way.
            again = client.generate(new, session="s", request_id=f"call {seed}", **call)
            assert await ids_of(again) == found
            assert again.finish_reason is FinishReason.END_TOKEN
            assert await ids_of(client.generate(session="s", **call)) == []
        assert 0 in counts
        assert max(counts) > 5


# Overload.


async def test_a_call_that_is_refused_by_a_full_queue_releases_its_session() -> None:
    engine = FakeEngine(capacity=1)
    async with serving_fake(engine, waiting_limit=1) as running:
        client = running.client
        await client.create_session([1, 2], session_id="s")
        engine.gate.clear()
        async with contextlib.AsyncExitStack() as others:
            for _ in range(2):  # One runs, one waits.
                other = asyncio.create_task(client.generate([3], max_tokens=2, temperature=0.0).text())
                others.push_async_callback(asyncio.wait, [other], timeout=30)
                await asyncio.sleep(0.05)
            others.callback(engine.gate.set)
            calls: list[Awaitable[str | Prediction | object]] = [
                client.generate([4], session="s", request_id="once", max_tokens=3, temperature=0.0).text(),
                client.classify([4], session="s", request_id="twice"),
                client.create_session([1, 2], session_id="new"),
            ]
            for call in calls:
                with pytest.raises(OverloadedError) as caught:
                    await call
                assert caught.value.reason == "QUEUE_FULL"
            session = await client.get_session("s")
            assert (session.running, session.position) == (False, 2)
            assert running.server._resources.sessions._registry.claims._claims == {}
        stream = client.generate([4], session="s", position=2, request_id="once", max_tokens=3, temperature=0.0)
        assert await ids_of(stream) == continuation([1, 2, 4], 3)
        total = sum([1, 2, 4, *continuation([1, 2, 4], 3), 5])
        found = await client.classify([5], session="s", request_id="twice")
        assert found.steps[0].name == LABELS[total % MODULUS]
        assert (await client.create_session([1, 2], session_id="new")).position == 2
        with pytest.raises(SessionExistsError):
            await client.create_session([1, 2], session_id="new")
