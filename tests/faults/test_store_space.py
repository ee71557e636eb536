"""Sessions take a bounded space, and where it is full they can be deleted: nothing that was acknowledged is lost."""

from __future__ import annotations

import subprocess
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from elman import OverloadedError
from elman_bundle import Bundle
from elman_server.errors import StoreFullError
from elman_server.sessions.changes import Advance, Create, Delete
from elman_server.sessions.session import TOKEN_TYPE, TokenLog
from elman_server.sessions.stores.memory import MemoryStore
from elman_server.sessions.stores.sqlite import SqliteStore
from elman_server.settings import Fsync
from tests.support.serving import serving
from tests.support.stored_sessions import apply_changes, empty, same, tokens_of

MEBIBYTE = 2**20
LONG = tokens_of(*range(50_000))  # 200 kB


def fill(store: MemoryStore | SqliteStore, most: int = 1000) -> list[str]:
    """Create long sessions until the store is full; return their ids."""
    for number in range(most):
        (error,) = create(store, f"long {number}")
        if error is not None:
            return [f"long {index}" for index in range(number)]
    raise AssertionError("the store is not full")


def create(store: MemoryStore | SqliteStore, session_id: str) -> list[Exception | None]:
    try:
        return list(store.apply([Create(empty(session_id, tokens=LONG[:]))]))
    except StoreFullError as error:
        return [error]


def test_a_store_in_memory_is_bounded() -> None:
    store = MemoryStore(MEBIBYTE)
    held = fill(store)
    assert len(held) == 5
    session = store.load("long 0")
    assert session is not None
    (error,) = store.apply([Advance("long 0", session.position, 3.0, LONG)])
    assert isinstance(error, StoreFullError)
    assert session.position == len(LONG)
    for number in range(1000):
        store.apply([Create(empty(f"short {number}"))])
    with pytest.raises(StoreFullError, match="Delete sessions, or raise --store-limit"):
        MemoryStore(0).check()
    assert store.apply([Delete("long 1")]) == [None]
    store.check()
    assert create(store, "another") == [None]
    assert store.load("long 1") is None


def test_a_file_is_bounded(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db", limit=2 * MEBIBYTE)
    held = fill(store)
    assert 5 <= len(held) <= 10
    assert store.apply([Delete(held[0])]) == [None]
    assert create(store, "another") == [None]
    store.close()
    assert (tmp_path / "sessions.db").stat().st_size <= 2 * MEBIBYTE
    larger = SqliteStore(tmp_path / "sessions.db", limit=MEBIBYTE)  # What is there stays.
    assert all(same(larger.load(name), empty(name, tokens=LONG[:])) for name in held[1:])
    assert larger.apply([Delete(held[1])]) == [None]
    larger.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this user mounts no file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("fsync", list(Fsync))
def test_sessions_can_be_deleted_on_a_full_disk(small_disk: Path, fsync: Fsync) -> None:
    store = SqliteStore(small_disk / "sessions.db", fsync)
    (small_disk / "other").write_bytes(bytes(2 * MEBIBYTE))
    held = fill(store)
    with (small_disk / "rest").open("wb", 0) as rest, pytest.raises(OSError, match="No space"):
        rest.writelines(bytes(1024) for _ in range(10_000))
    with pytest.raises(StoreFullError):
        store.check()
    kept, *others = held
    advance = Advance(kept, len(LONG), 3.0, tokens_of(*range(9000)))
    refused, *deleted = store.apply([advance, *(Delete(name) for name in others)])
    assert isinstance(refused, StoreFullError)
    assert deleted == [None] * len(others)
    assert same(store.load(kept), empty(kept, tokens=LONG[:]))
    assert [store.load(name) for name in others] == [None] * len(others)
    for name in ("rest", "other"):
        (small_disk / name).unlink()
    store.check()
    session = empty(kept, tokens=LONG[:])
    apply_changes(store, session, advance)
    assert same(store.load(kept), session)
    store.close()
    assert not list(small_disk.glob("*-reserve"))


def test_forks_share_tokens_until_they_differ() -> None:
    whole = TokenLog(tokens_of(1, 2, 3, 4))
    forks = [whole.fork(4), whole.fork(4), whole.fork(2)]
    assert all(fork._array is whole._array for fork in forks)
    forks[0].extend([5])
    assert forks[0]._array is whole._array
    whole.extend([6])
    forks[1].extend([7, 8])
    forks[2].extend(tokens_of(9))
    assert [list(log) for log in (whole, *forks)] == [[1, 2, 3, 4, 6], [1, 2, 3, 4, 5], [1, 2, 3, 4, 7, 8], [1, 2, 9]]
    whole.truncate(1)
    assert (list(whole), len(whole), whole[-3:]) == ([1], 1, array(TOKEN_TYPE, [1]))
    whole.extend([2])
    assert list(forks[0]) == [1, 2, 3, 4, 5]


async def test_forks_of_a_long_session_take_the_memory_of_one(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["tags"]) as running:
        client, sessions = running.client, running.server._resources.sessions
        await client.create_session("hello " * 2000, session_id="s")
        for number in range(200):
            await client.fork_session("s", new_session_id=f"fork-{number}", position=12_000 - number % 7)
        arrays = {id((await sessions.get(f"fork-{number}")).tokens._array) for number in range(200)}
        assert len(arrays) == 1
        await client.classify("abc", session="fork-7")
        assert (await client.get_session("fork-14")).position == 12_000
        assert (await client.session_tokens("fork-14")).text == "hello " * 2000


async def test_a_server_refuses_sessions_beyond_its_limit(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["tags"], store_limit=1) as running:
        client, store = running.client, running.server._resources.sessions._store
        assert isinstance(store, MemoryStore)
        assert store._limit == MEBIBYTE
        store._limit = 60_000
        for number in range(4):
            await client.create_session("hello " * 450, session_id=f"{number}")
        with pytest.raises(OverloadedError, match=r"there is no space left for sessions\. Delete sessions, or raise"):
            await client.create_session("hello " * 450)
        await client.delete_session("0")
        await client.create_session("hello " * 450, session_id="another")
