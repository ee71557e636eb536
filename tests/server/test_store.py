"""The SQLite store: what is stored is restored, and damaged content is never restored as something else."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elman_server.errors import (
    SessionDamagedError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreOpenError,
    StoreUnavailableError,
)
from elman_server.sessions.changes import Advance, Create, Delete, Rewind
from elman_server.sessions.session import REMEMBERED_CALLS
from elman_server.sessions.snapshots import Snapshot, superseded_positions
from elman_server.sessions.stores.sqlite import SqliteStore
from elman_server.settings import Fsync
from tests.support.amount import examples
from tests.support.stored_sessions import (
    STATE_BYTES,
    apply_changes,
    call_of,
    empty,
    is_earlier,
    long_session,
    same,
    tokens_of,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions" / "elman.db"


def test_a_stored_session_survives_the_process(path: Path) -> None:
    store = SqliteStore(path)
    session = long_session(store)
    assert same(store.load("s"), session)
    assert len(session.calls) == REMEMBERED_CALLS
    store.close()
    store = SqliteStore(path, Fsync.ALWAYS)
    assert same(store.load("s"), session)
    assert store.load("another") is None
    store.apply([Delete("s")])
    assert store.load("s") is None
    store.close()


_POSITIONS = st.integers(0, 2500)


@settings(max_examples=examples(10, everything=40))
@given(st.lists(st.one_of(st.integers(1, 1500), _POSITIONS.map(lambda position: -position)), max_size=12))
def test_any_history_of_changes_is_restored(tmp_path_factory: pytest.TempPathFactory, history: list[int]) -> None:
    """A positive number N of a history appends N tokens; any other rewinds to position -N, if there is one."""
    store = SqliteStore(tmp_path_factory.mktemp("store") / "elman.db", Fsync.NEVER)
    session = empty()
    store.apply([Create(session)])
    for index, number in enumerate(history):
        start = session.position
        if number > 0:
            state = Snapshot(start + number - 1, bytes([index]) * STATE_BYTES)
            call = call_of(str(index % 3), start, number, 0, "read" if index % 2 else "")
            new = tokens_of(*range(index, index + number))
            apply_changes(
                store,
                session,
                Advance(
                    "s", start, float(index), new, call, state, tuple(superseded_positions(session.snapshots, state))
                ),
            )
        elif -number <= start:
            apply_changes(store, session, Rewind("s", -number, max(-number - 1, 0)))
    assert same(store.load("s"), session)
    store.close()


def test_a_change_from_another_position_is_refused_and_the_others_are_kept(path: Path) -> None:
    store = SqliteStore(path)
    one, other = empty("one"), empty("other")
    store.apply([Create(one), Create(other)])
    good, late = Advance("one", 0, 3.0, tokens_of(1, 2)), Advance("other", 5, 3.0, tokens_of(9))
    kept, refused = store.apply([good, late])
    assert kept is None
    assert isinstance(refused, StoreConflictError)
    loaded = store.load("one"), store.load("other")
    assert [list(session.tokens) for session in loaded if session] == [[1, 2], []]
    store.close()


def test_sessions_are_listed_counted_and_found_expired(path: Path) -> None:
    store = SqliteStore(path)
    store.apply([Create(empty(name, used=used, caller=name[0])) for name, used in (("b1", 5), ("a", 1), ("b2", 9))])
    assert [summary.session_id for summary in store.page("", 2)] == ["a", "b1"]
    assert [summary.session_id for summary in store.page("b1", 2)] == ["b2"]
    assert (store.count("b"), store.count("c")) == (2, 0)
    assert sorted(store.expired(6.0)) == ["a", "b1"]
    store.close()


def test_a_second_server_cannot_open_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elman_server.sessions.stores.sqlite.database._BUSY_SECONDS", 0.1)
    store = SqliteStore(path)
    with pytest.raises(StoreOpenError, match="another server has it open"):
        SqliteStore(path)
    store.close()
    SqliteStore(path).close()


def test_the_error_says_why_a_store_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, but a text that somebody has written" * 100)
    with pytest.raises(
        StoreOpenError,
        match=r"store: got .*text; it is not a store of sessions, or is damaged: .*Restore it from a backup",
    ):
        SqliteStore(tmp_path / "text")
    with pytest.raises(StoreOpenError, match=r"store: got .*elman.db; it cannot be opened"):
        SqliteStore(tmp_path / "text" / "elman.db")
    later = sqlite3.connect(tmp_path / "later.db")
    later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(StoreOpenError, match=r"later\.db; it has format 99, and this server reads format 1"):
        SqliteStore(tmp_path / "later.db")


def test_a_full_disk_is_reported_and_harms_nothing(path: Path) -> None:
    store = SqliteStore(path)
    session = empty()
    store.apply([Create(session)])
    # SQLite then reports the same error as for a full disk.
    store._database.connection.execute("PRAGMA max_page_count = 40")

    def fill() -> None:
        while True:
            apply_changes(store, session, Advance("s", session.position, 3.0, tokens_of(*range(1000))))

    with pytest.raises(StoreFullError, match="store: there is no space left"):
        fill()
    assert same(store.load("s"), session)
    store._database.connection.execute("PRAGMA max_page_count = 4000")
    apply_changes(store, session, Advance("s", session.position, 3.0, tokens_of(1)))
    assert same(store.load("s"), session)
    store.close()


Damage = Callable[[sqlite3.Connection], object]
_DAMAGES: dict[str, Damage] = {
    "a token changed": lambda c: c.execute(
        "UPDATE segments SET tokens = CAST(x'ff' || substr(tokens, 2) AS BLOB) WHERE number = 1"
    ),
    "a segment cut": lambda c: c.execute("UPDATE segments SET tokens = substr(tokens, 1, 99) WHERE number = 2"),
    "a segment gone": lambda c: c.execute("DELETE FROM segments WHERE number = 1"),
    "all tokens gone": lambda c: c.execute("DELETE FROM segments"),
    "states changed": lambda c: c.execute("UPDATE snapshots SET state = CAST(x'ff' || substr(state, 2) AS BLOB)"),
    "a state moved": lambda c: c.execute(
        "UPDATE snapshots SET position = position + 1 WHERE position = (SELECT max(position) FROM snapshots)"
    ),
    "a call changed": lambda c: c.execute("UPDATE calls SET generated_count = generated_count - 1"),
    "calls gone": lambda c: c.execute("DELETE FROM calls"),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_damaged_rows_are_never_used(path: Path, name: str) -> None:
    store = SqliteStore(path)
    session = long_session(store)
    store.close()
    connection = sqlite3.connect(path)
    assert not isinstance(_DAMAGES[name](connection), Exception)
    connection.commit()
    connection.close()
    store = SqliteStore(path)
    found = store.load("s")
    assert found is not None
    assert not same(found, session)
    assert is_earlier(found, session)
    # The session continues from there, undamaged.
    apply_changes(store, found, Advance("s", found.position, 4.0, tokens_of(*range(2000))))
    assert same(store.load("s"), found)
    store.close()


def test_a_damaged_session_row_is_reported(path: Path) -> None:
    store = SqliteStore(path)
    store.apply([Create(empty()), Create(empty("sound"))])
    store._database.connection.execute("UPDATE sessions SET seed = 8 WHERE session_id = 's'")
    with pytest.raises(SessionDamagedError, match=r"session_id: got 's'; its record in the store is damaged"):
        store.load("s")
    assert same(store.load("sound"), empty("sound"))
    store.apply([Delete("s")])  # Its id can be used again.
    assert store.load("s") is None
    store.close()


@pytest.mark.parametrize("seed", range(25))
def test_flipped_and_missing_bytes_of_the_file_are_reported_or_never_used(path: Path, seed: int) -> None:
    store = SqliteStore(path)
    session = long_session(store)
    store.close()
    stream = random.Random(seed)
    content = bytearray(path.read_bytes())
    if seed % 5 == 0:
        del content[stream.randrange(len(content)) :]
    else:
        for _ in range(20):
            content[stream.randrange(100, len(content))] ^= 1 << stream.randrange(8)
    path.write_bytes(content)
    try:
        store = SqliteStore(path)
    except StoreOpenError:
        return
    try:
        found = store.load("s")
        assert found is None or is_earlier(found, session)
    except (SessionDamagedError, StoreError):
        pass
    finally:
        store.close()


def test_a_truncated_log_restores_what_was_committed_before(path: Path, tmp_path: Path) -> None:
    """A crash leaves a write-ahead log of any length."""
    store = SqliteStore(path)
    session = empty()
    store.apply([Create(session)])
    for number in range(50):
        apply_changes(store, session, Advance("s", session.position, 3.0, tokens_of(*range(number, number + 50))))
    log = Path(f"{path}-wal").read_bytes()
    whole = path.read_bytes()
    positions = set()
    for cut in range(0, len(log), len(log) // 40):
        copy = tmp_path / f"cut {cut}"
        copy.write_bytes(whole)
        Path(f"{copy}-wal").write_bytes(log[:cut])
        try:
            after = SqliteStore(copy)
            found = after.load("s")
        except (StoreOpenError, StoreUnavailableError):
            continue
        if found is not None:
            assert is_earlier(found, session)
            positions.add(found.position)
        after.close()
    assert len(positions) > 10
    store.close()
