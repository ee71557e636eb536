"""The file of a store is for its owner alone, and no other program's database becomes one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from elman import Client, InvalidRequestError
from elman_bundle import Bundle
from elman_server.errors import StoreOpenError
from elman_server.sessions.changes import Create
from elman_server.sessions.stores.sqlite import SqliteStore
from elman_server.sessions.stores.sqlite.database import Database
from elman_server.settings import Fsync
from tests.support.serving import serving
from tests.support.stored_sessions import empty


@pytest.fixture
def common_mask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("common_mask")
def test_only_the_owner_reads_a_new_store(tmp_path: Path) -> None:
    database = Database(tmp_path / "sessions.db", Fsync.CHECKPOINT)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1  # the write-ahead log among them
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    database.connection.close()


@pytest.mark.usefixtures("common_mask")
def test_the_mode_of_an_old_store_stays(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    Database(path, Fsync.CHECKPOINT).close()
    path.chmod(0o640)
    Database(path, Fsync.CHECKPOINT).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tables", [("notes",), ("sessions",), ("sessions", "calls")])
def test_the_database_of_another_program_is_left_alone(tmp_path: Path, tables: tuple[str, ...], version: int) -> None:
    path = tmp_path / "notes.db"
    with closing(sqlite3.connect(path)) as other:
        for table in tables:
            other.execute(f"CREATE TABLE {table} (text TEXT)")
        other.execute(f"PRAGMA user_version = {version}")
        other.commit()
    with pytest.raises(StoreOpenError, match="it is the database of another program, with the tables"):
        Database(path, Fsync.CHECKPOINT)
    with closing(sqlite3.connect(path)) as other:
        found = {name for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert found == set(tables)


def copied(source: Path, folder: Path, *endings: str) -> Path:
    """Copy files of a store, as a back-up does; returns the new file."""
    folder.mkdir()
    for ending in endings:
        shutil.copy(source.with_name(source.name + ending), folder / (source.name + ending))
    return folder / source.name


def sessions_of(path: Path) -> list[str]:
    store = SqliteStore(path)
    found = [summary.session_id for summary in store.page("", 100)]
    store.close()
    return found


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_copy_of_a_store_in_use_needs_its_log(tmp_path: Path, checkpoint: bool) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    store.apply([Create(empty("a"))])
    if checkpoint:
        store._database.shrink_log()
    store.apply([Create(empty("b"))])
    alone = copied(path, tmp_path / "alone", "")
    whole = copied(path, tmp_path / "whole", "", "-wal")
    store.close()
    for _ in range(2):
        with pytest.raises(StoreOpenError, match="a server had it open, and the log that belongs to it is missing"):
            SqliteStore(alone)
    assert sessions_of(whole) == ["a", "b"]
    assert sessions_of(path) == ["a", "b"]
    assert sessions_of(copied(path, tmp_path / "after the end", "")) == ["a", "b"]
    alone.with_name("sessions.db-wal").touch()
    assert sessions_of(alone) == (["a"] if checkpoint else [])
    assert sessions_of(alone) == (["a"] if checkpoint else [])


def test_a_store_of_an_earlier_version_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    store.apply([Create(empty("a"))])
    store.close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA application_id = 0")
    assert sessions_of(path) == ["a"]


def test_a_killed_server_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    store.apply([Create(empty("a"))])
    killed = copied(path, tmp_path / "killed", "", "-wal")  # As it is at this moment.
    store.close()
    again = SqliteStore(killed)
    again.apply([Create(empty("b"))])
    killed_again = copied(killed, tmp_path / "killed again", "", "-wal")
    again.close()
    assert sessions_of(killed_again) == ["a", "b"]


async def test_the_identity_of_a_caller_is_bounded(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["gru"]) as running:
        async with Client(running.address, caller="x" * 256) as client:
            await client.create_session("a")
        async with Client(running.address, caller="x" * 257) as client:
            with pytest.raises(InvalidRequestError, match="elman-caller: got 257 characters; at most 256 are allowed"):
                await client.create_session("a")
