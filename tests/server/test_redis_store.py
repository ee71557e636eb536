"""The Redis store, which servers share: every change is stored once and restored on any server, and only the server
that holds the lease of a session can change it."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from redis.exceptions import ConnectionError
from structlog.testing import capture_logs

from elman_server.errors import (
    SessionDamagedError,
    SessionElsewhereError,
    SessionMovedError,
    StoreConflictError,
    StoreFullError,
    StoreOpenError,
    StoreUnavailableError,
)
from elman_server.sessions.changes import Advance, Create, Delete, Rewind
from elman_server.sessions.session import REMEMBERED_CALLS, TOKEN_TYPE, Call, Session
from elman_server.sessions.snapshots import Snapshot, superseded_positions
from elman_server.sessions.stores import open_store
from elman_server.sessions.stores.interface import Lease
from elman_server.sessions.stores.redis import RedisStore
from elman_server.sessions.stores.redis.connection import public_name
from elman_server.sessions.stores.redis.keys import key_of
from elman_server.settings import Settings
from tests.support.amount import examples
from tests.support.redis_server import RedisServer, redis_is_installed, redis_running
from tests.support.redis_sessions import acquired, created, empty, leased, stamped

pytestmark = pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")

STATE_BYTES = 40
SHORT = 0.4  # seconds that a lease lasts in tests that wait for its end


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(one_server: RedisServer) -> RedisServer:
    one_server.ask("FLUSHALL")
    return one_server


@pytest.fixture
def open_one(redis: RedisServer) -> Iterator[Callable[..., RedisStore]]:
    """Open stores, each as that of another server."""
    with contextlib.ExitStack() as opened:

        def store(**options: Any) -> RedisStore:
            return opened.enter_context(contextlib.closing(RedisStore(redis.url, **options)))

        yield store


@pytest.fixture
def store(open_one: Callable[..., RedisStore]) -> RedisStore:
    return open_one()


def tokens_of(*ids: int) -> array[int]:
    return array(TOKEN_TYPE, ids)


def call_of(name: str, start: int, prompt: int, generated: int = 0, outcome: str = "") -> Call:
    return Call(name, b"f" * 16, start, prompt, generated, outcome, b"ans\nwer\x00")


def apply_changes(store: RedisStore, session: Session, *changes: Advance | Rewind) -> None:
    """Make changes in the store and to the session in memory."""
    following = stamped(session, *changes)
    assert store.apply(following) == [None] * len(changes)
    for change in following:
        change.apply(session)


def same(one: Session | None, other: Session) -> bool:
    return (
        one is not None
        and replace(one, fence=0) == replace(other, fence=0)
        and list(one.calls) == list(other.calls)  # The order decides which call is forgotten first.
    )


def more(session: Session, *ids: int) -> Advance:
    return Advance(session.session_id, session.position, 3.0, tokens_of(*ids))


def long_session(store: RedisStore, steps: int = 3000) -> Session:
    """A session of many pieces, snapshots and calls."""
    session = created(store)
    stream = random.Random(0)
    while session.position < steps:
        new = tokens_of(*(stream.randrange(1000) for _ in range(stream.randrange(1, 200))))
        call = call_of(f"call {session.position}", session.position, 1, len(new) - 1, "max_tokens")
        state = Snapshot(session.position + len(new) - 1, stream.randbytes(STATE_BYTES))
        dropped = tuple(superseded_positions(session.snapshots, state))
        apply_changes(store, session, Advance("s", session.position, 3.0, new, call, state, dropped))
    return session


# Storing and restoring.


def test_a_stored_session_is_restored_on_another_server(open_one: Callable[..., RedisStore]) -> None:
    store, other = open_one(), open_one()
    session = long_session(store)
    assert len(session.calls) == REMEMBERED_CALLS
    for known in (store, other):
        assert same(known.load("s"), session)
        assert known.load("another") is None
    store.apply([Delete("s", session.fence)])
    assert other.load("s") is None
    assert acquired(other, "s").version == -1  # Its lease was deleted with it.


def test_a_deleted_session_leaves_nothing(store: RedisStore, redis: RedisServer) -> None:
    session = long_session(store)
    store.apply([Delete("s", session.fence), Delete("s", session.fence), Delete("never was")])
    left = redis.ask("KEYS", "*")
    assert [redis.ask("PTTL", key) > 0 for key in left] == [True] * len(left)


def test_a_session_is_created_with_everything_that_it_holds(store: RedisStore) -> None:
    session = long_session(store)
    fork = session.fork("fork", 2500, 2400, seed=0, caller="ö", now=5.5)
    fork.calls = session.calls
    fork.version = 7
    assert store.apply([Create(fork)]) == [None]
    fork.calls = {name: call for name, call in fork.calls.items() if call.end <= fork.position}
    assert same(store.load("fork"), fork)
    apply_changes(store, leased(store, fork), Rewind("fork", 1030, 1030), Advance("fork", 1030, 6.0, tokens_of(1, 2)))
    assert same(store.load("fork"), fork)


_POSITIONS = st.integers(0, 2500)


@settings(max_examples=examples(10, everything=40))
@given(st.lists(st.one_of(st.integers(1, 1500), _POSITIONS.map(lambda position: -position)), max_size=12))
def test_any_history_of_changes_is_restored(one_server: RedisServer, history: list[int]) -> None:
    """A positive number N of a history appends N tokens; any other rewinds to position -N, if there is one."""
    one_server.ask("FLUSHALL")
    with contextlib.closing(RedisStore(one_server.url)) as store:
        session = created(store)
        for index, number in enumerate(history):
            start = session.position
            if number > 0:
                state = Snapshot(start + number - 1, bytes([index]) * STATE_BYTES)
                call = call_of(str(index % 3), start, number, 0, "read" if index % 2 else "")
                new = tokens_of(*range(index, index + number))
                dropped = tuple(superseded_positions(session.snapshots, state))
                apply_changes(store, session, Advance("s", start, float(index), new, call, state, dropped))
            elif -number <= start:
                apply_changes(store, session, Rewind("s", -number, max(-number - 1, 0)))
            assert same(store.load("s"), session)


def test_a_change_from_another_version_is_refused_and_the_others_are_kept(store: RedisStore) -> None:
    one, other = created(store, "one"), created(store, "other")
    good = stamped(one, more(one, 1, 2))
    elsewhere = stamped(other, replace(more(other, 9), start=5))
    too_late = [replace(more(other, 9), version=2, fence=other.fence), Rewind("other", 0, 0, 3, other.fence)]
    beyond = stamped(other, Rewind("other", 1, 1))
    lost = [Advance("nobody", 0, 3.0, version=1, fence=other.fence)]
    again = [Create(empty("one"))]
    kept, *refused = store.apply([*good, *elsewhere, *too_late, *beyond, *lost, *again])
    assert kept is None
    assert [type(error) for error in refused] == [StoreConflictError] * 6
    assert (
        "session_id: got 'other'; it is at version 0 and position 0; the change starts from version 0 and position 5"
        in str(refused[0])
    )
    loaded = store.load("one"), store.load("other")
    assert [list(session.tokens) for session in loaded if session] == [[1, 2], []]


def test_sessions_are_listed_counted_and_found_expired(store: RedisStore) -> None:
    for name, used in (("b1", 5), ("a", 1), ("b2", 9), ("ä", 20)):
        store.apply([Create(empty(name, used=used, caller=name[0]))])
    assert [summary.session_id for summary in store.page("", 2)] == ["a", "b1"]
    assert [summary.session_id for summary in store.page("b1", 2)] == ["b2", "ä"]
    assert store.page("", 1)[0].used == 1.0
    assert (store.count("b"), store.count("c")) == (2, 0)
    assert sorted(store.expired(6.0)) == ["a", "b1"]
    apply_changes(store, session := leased(store, empty("a", used=1)), replace(more(session, 1), used=30.0))
    assert store.expired(6.0) == ["b1"]
    assert store.page("", 1)[0].position == 1
    store.apply([Delete("b1", acquired(store, "b1").fence)])
    assert (store.count("b"), store.expired(6.0), len(store.page("", 10))) == (1, [], 3)


def test_an_evicted_session_is_not_listed_and_is_found_expired_once(store: RedisStore, redis: RedisServer) -> None:
    for name in ("a", "b", "c", "d"):
        created(store, name)
    redis.ask("DEL", "elman:{b}:header", "elman:{c}:header")
    assert [summary.session_id for summary in store.page("", 2)] == ["a", "d"]
    assert store.load("b") is None
    assert sorted(store.expired(9.0)) == ["a", "d"]
    assert redis.ask("ZCARD", "elman:ids") == 2


# Damage.


def is_earlier(found: Session, whole: Session) -> bool:
    """Whether a session is a correct, possibly earlier version of another."""
    states = {snapshot.position: snapshot for snapshot in whole.snapshots}
    return (
        found.tokens == whole.tokens[: found.position]
        and all(states[snapshot.position] == snapshot for snapshot in found.snapshots)
        and all(whole.calls[name] == call for name, call in found.calls.items())
        and all(snapshot.position <= found.position for snapshot in found.snapshots)
        and all(call.end <= found.position for call in found.calls.values())
        and (found.seed, found.digest, found.model) == (whole.seed, whole.digest, whole.model)
    )


def key(name: str) -> str:
    return f"elman:{{s}}:{name}"


def spoil_piece(redis: RedisServer, number: int, spoil: Callable[[bytes], bytes]) -> None:
    redis.ask("LSET", key("log"), number, spoil(redis.ask("LINDEX", key("log"), number)))


def spoil_all(redis: RedisServer, name: str, spoil: Callable[[bytes], bytes]) -> None:
    entries = redis.ask("HGETALL", key(name))
    for field, value in entries.items():
        redis.ask("HSET", key(name), field, spoil(value))


def swap_pieces(redis: RedisServer) -> None:
    one, other = (redis.ask("LINDEX", key("log"), number) for number in (3, 4))
    spoil_piece(redis, 3, lambda piece: other)
    spoil_piece(redis, 4, lambda piece: one)


def move_state(redis: RedisServer) -> None:
    position, state = max(redis.ask("HGETALL", key("states")).items(), key=lambda entry: int(entry[0]))
    redis.ask("HDEL", key("states"), position)
    redis.ask("HSET", key("states"), int(position) - 1, state)


_DAMAGES: dict[str, Callable[[RedisServer], object]] = {
    "a token changed": lambda redis: spoil_piece(redis, 3, lambda piece: piece[:-1] + b"\xff"),
    "the first token changed": lambda redis: spoil_piece(redis, 0, lambda piece: piece[:-1] + b"\xff"),
    "a piece cut": lambda redis: spoil_piece(redis, 5, lambda piece: piece[:-4]),
    "a piece garbled": lambda redis: spoil_piece(redis, 5, lambda piece: b"rubbish"),
    "a piece that says another start": lambda redis: spoil_piece(redis, 5, lambda piece: b"1" + piece),
    "a piece gone": lambda redis: redis.ask("LREM", key("log"), 0, redis.ask("LINDEX", key("log"), 4)),
    "a piece twice": lambda redis: redis.ask("RPUSH", key("log"), redis.ask("LINDEX", key("log"), 4)),
    "two pieces swapped": swap_pieces,
    "all tokens gone": lambda redis: redis.ask("DEL", key("log")),
    "an earlier position": lambda redis: redis.ask("HSET", key("header"), "position", 1000),
    "a later position": lambda redis: redis.ask("HSET", key("header"), "position", 10_000),
    "states changed": lambda redis: spoil_all(redis, "states", lambda state: state[:-1] + b"\xff"),
    "a state moved": move_state,
    "calls changed": lambda redis: spoil_all(redis, "calls", lambda call: call.replace(b"max_tokens", b"min_tokens")),
    "calls cut": lambda redis: spoil_all(redis, "calls", lambda call: call[:10]),
    "a call gone": lambda redis: redis.ask("HDEL", key("calls"), redis.ask("LINDEX", key("order"), 3)),
    "calls gone": lambda redis: redis.ask("DEL", key("calls")),
    "the calls' order gone": lambda redis: redis.ask("DEL", key("order")),
}


@pytest.mark.parametrize("name", [name for name in _DAMAGES if name != "a piece twice"])
def test_damaged_values_are_never_used(store: RedisStore, redis: RedisServer, name: str) -> None:
    session = long_session(store)
    _DAMAGES[name](redis)
    found = store.load("s")
    assert found is not None
    assert not same(found, session)
    assert is_earlier(found, session)
    assert same(store.load("s"), found)
    # The session continues from there, undamaged.
    found.fence = session.fence
    apply_changes(store, found, more(found, *range(2000)))
    loaded = store.load("s")
    assert loaded is not None
    assert replace(loaded, calls={}) == replace(found, calls={}, fence=0)


def test_an_extra_piece_of_the_log_is_ignored(store: RedisStore, redis: RedisServer) -> None:
    session = long_session(store)
    _DAMAGES["a piece twice"](redis)
    found = store.load("s")
    assert found is not None
    assert same(replace(found, version=session.version), session)
    apply_changes(store, leased(store, found), more(found, 1))
    assert same(store.load("s"), found)


def test_values_beyond_the_end_are_ignored(store: RedisStore, redis: RedisServer) -> None:
    session = long_session(store)
    _DAMAGES["an earlier position"](redis)
    found = store.load("s")
    assert found is not None
    assert found.tokens == session.tokens[:1000]


def test_a_rewind_hides_no_damage(store: RedisStore, redis: RedisServer) -> None:
    session = created(store)
    apply_changes(store, session, more(session, *range(100)))
    spoil_piece(redis, 0, lambda piece: piece[:-400] + b"\xff" + piece[-399:])
    assert store.apply(stamped(session, Rewind("s", 50, 50))) == [None]
    found = store.load("s")
    assert found is not None
    assert found.position == 0


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_appending_to_a_damaged_piece_does_not_hide_the_damage(
    store: RedisStore, redis: RedisServer, damage: str
) -> None:
    """Small pieces are merged with the one before."""
    session = created(store)
    apply_changes(store, session, more(session, *range(10)), replace(more(session, *range(4)), start=10))
    assert redis.ask("LLEN", key("log")) == 1
    apply_changes(store, session, more(session, *range(100)))
    assert redis.ask("LLEN", key("log")) == 2
    redis.ask("RPOP", key("log"))
    if damage == "changed":
        apply_changes(store, session, Rewind("s", 14, 14))
        spoil_piece(redis, 0, lambda piece: piece[:-1] + b"\xff")
    apply_changes(store, session, more(session, 1, 2))
    found = store.load("s")
    assert found is not None
    assert found.position == (14 if damage == "lost" else 0)
    assert is_earlier(found, session)


def test_a_change_that_started_before_a_repair_is_refused(
    open_one: Callable[..., RedisStore], redis: RedisServer
) -> None:
    """Another server has found the session damaged: changes that are under way start after the damage, and must not be
    mistaken for repeated ones."""
    store, other = open_one(), open_one()
    session = long_session(store)
    under_way = stamped(session, more(session, 1), Rewind("s", 10, 10), Advance("s", 10, 3.0, tokens_of(1)))
    _DAMAGES["a piece gone"](redis)
    found = other.load("s")
    assert found is not None
    assert [type(error) for error in store.apply(under_way)] == [StoreConflictError] * 3
    assert same(store.load("s"), found)


def test_a_session_that_advances_during_its_repair_is_read_again(
    open_one: Callable[..., RedisStore], redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_one(), open_one()
    session = long_session(store)
    _DAMAGES["a token changed"](redis)
    repair = other._repair

    def repair_too_late(held: Any) -> bool:
        apply_changes(store, session, Rewind("s", 5, 5))
        return repair(held)

    monkeypatch.setattr(other, "_repair", repair_too_late)
    found = other.load("s")
    assert same(found, session)
    assert found is not None
    assert found.position == 5


@pytest.mark.parametrize("field", ["seed", "model", "created", "position", "version"])
def test_a_damaged_header_is_reported(store: RedisStore, redis: RedisServer, field: str) -> None:
    created(store)
    sound = created(store, "sound")
    redis.ask("HSET", key("header"), field, "8?" if field in ("position", "version") else "8")
    with pytest.raises(SessionDamagedError, match=r"session_id: got 's'; its record in the store is damaged"):
        store.load("s")
    redis.ask("HDEL", key("header"), field)
    with pytest.raises(SessionDamagedError):
        store.load("s")
    assert same(store.load("sound"), sound)
    store.apply([Delete("s", acquired(store, "s").fence)])  # Its id can be used again.
    assert store.load("s") is None


def test_a_session_under_the_keys_of_another_is_reported(store: RedisStore, redis: RedisServer) -> None:
    created(store)
    redis.ask("RENAME", key("header"), "elman:{t}:header")
    with pytest.raises(SessionDamagedError):
        store.load("t")


def test_a_key_of_another_type_is_reported(store: RedisStore, redis: RedisServer) -> None:
    session = long_session(store)
    redis.ask("SET", key("log"), "somebody else's")
    with pytest.raises(SessionDamagedError):
        store.load("s")
    (error,) = store.apply(stamped(session, more(session, 1)))
    assert isinstance(error, StoreUnavailableError)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_are_reported_or_never_used(store: RedisStore, redis: RedisServer, seed: int) -> None:
    session = long_session(store)
    stream = random.Random(seed)

    def flipped(value: bytes) -> bytes:
        content = bytearray(value)
        content[stream.randrange(len(content))] ^= 1 << stream.randrange(8)
        return bytes(content)

    name = stream.choice(["header", "log", "log", "states", "calls"])
    if name == "log":
        spoil_piece(redis, stream.randrange(redis.ask("LLEN", key("log"))), flipped)
    else:
        field, value = stream.choice(sorted(redis.ask("HGETALL", key(name)).items()))
        redis.ask("HSET", key(name), field, flipped(value))
    with contextlib.suppress(SessionDamagedError):
        found = store.load("s")
        assert found is not None
        assert is_earlier(found, session)


# Leases.


def test_two_servers_hold_the_lease_of_a_session_in_turn(open_one: Callable[..., RedisStore]) -> None:
    one, other = open_one(lease_seconds=SHORT), open_one(lease_seconds=SHORT)
    first = created(one)
    apply_changes(one, first, more(first, 1))
    with pytest.raises(
        SessionElsewhereError, match="session_id: got 's'; another server holds this session"
    ) as refusal:
        acquired(other, "s")
    assert 0 < refusal.value.seconds <= SHORT
    time.sleep(refusal.value.seconds + 0.05)  # The first server is dead, or still takes the lease for its own.
    second = leased(other, replace(first, tokens=first.tokens[:]))
    assert second.fence > first.fence
    sound = created(one, "sound")
    errors = one.apply(
        [
            *stamped(first, more(first, 66)),
            *stamped(sound, more(sound, 1)),
            *stamped(first, Rewind("s", 0, 0)),
            Delete("s", first.fence),
        ]
    )
    assert [type(error) for error in errors] == [SessionMovedError, type(None), SessionMovedError, SessionMovedError]
    apply_changes(other, second, more(second, 2))
    assert one.renew({"s": first.fence, "sound": sound.fence}) == ["s"]
    one.release([("s", first.fence)])
    with pytest.raises(SessionElsewhereError):  # The first server could not release it.
        acquired(one, "s")
    other.release([("s", second.fence)])
    third = leased(one, replace(second, tokens=second.tokens[:]))
    apply_changes(one, third, more(third, 3))
    (error,) = other.apply(stamped(second, more(second, 66)))
    assert isinstance(error, SessionMovedError)
    loaded = other.load("s")
    assert loaded is not None
    assert list(loaded.tokens) == [1, 2, 3]


def test_a_renewed_lease_lasts_longer(open_one: Callable[..., RedisStore]) -> None:
    one, other = open_one(lease_seconds=SHORT), open_one()
    session = created(one)
    for _ in range(4):
        assert one.renew({"s": session.fence}) == []
        time.sleep(SHORT * 0.6)
        with pytest.raises(SessionElsewhereError):
            acquired(other, "s")
    time.sleep(SHORT)
    assert acquired(other, "s").version == session.version


def test_an_expired_lease_that_no_server_has_acquired_can_be_renewed(open_one: Callable[..., RedisStore]) -> None:
    one, other = open_one(lease_seconds=SHORT), open_one()
    session = created(one)
    time.sleep(SHORT * 1.5)
    apply_changes(one, session, more(session, 1))
    assert one.renew({"s": session.fence}) == []
    with pytest.raises(SessionElsewhereError):
        acquired(other, "s")


def test_a_server_can_acquire_its_own_lease_again(open_one: Callable[..., RedisStore]) -> None:
    store = open_one()
    session = created(store)
    later = acquired(store, "s")
    assert later.fence > session.fence
    store.release([("s", session.fence)])  # Arrives late.
    with pytest.raises(SessionElsewhereError):
        acquired(open_one(), "s")
    assert store.renew({"s": later.fence}) == []
    assert store.renew({"s": session.fence}) == ["s"]
    (error,) = store.apply(stamped(session, more(session, 1)))
    assert isinstance(error, SessionMovedError)


def test_the_lease_of_a_missing_session_leaves_nothing(store: RedisStore, redis: RedisServer) -> None:
    lease = acquired(store, "nobody")
    assert lease.version == -1
    assert store.renew({"nobody": lease.fence}) == []
    assert [redis.ask("PTTL", name) > 0 for name in redis.ask("KEYS", "*")] == [True]
    store.release([("nobody", lease.fence)])
    assert redis.ask("KEYS", "*") == []
    assert store.renew({"nobody": lease.fence}) == ["nobody"]


def test_a_change_of_a_deleted_session_does_not_reach_a_new_one_with_its_id(
    open_one: Callable[..., RedisStore],
) -> None:
    one, other = open_one(lease_seconds=SHORT), open_one()
    old = created(one)
    time.sleep(SHORT * 1.5)
    other.apply([Delete("s", acquired(other, "s").fence), Create(empty())])
    errors = one.apply([*stamped(old, more(old, 66)), Delete("s", old.fence)])
    assert [type(error) for error in errors] == [SessionMovedError] * 2
    assert same(other.load("s"), empty())


def test_a_lease_that_redis_has_lost_holds_if_the_session_is_unchanged(store: RedisStore, redis: RedisServer) -> None:
    """As when a replica takes over that has not received the lease."""
    session = created(store)
    apply_changes(store, session, more(session, 1))
    redis.ask("HSET", key("header"), "fence", 5)
    (error,) = store.apply([replace(more(session, 2), version=1, fence=session.fence)])
    assert isinstance(error, StoreConflictError)  # Only this server knows that it is not a repeated one.
    apply_changes(store, session, more(session, 2))
    assert store.renew({"s": session.fence}) == []
    assert same(store.load("s"), session)


def test_of_many_servers_that_race_for_a_lease_one_acquires_it(open_one: Callable[..., RedisStore]) -> None:
    stores = [open_one() for _ in range(4)]
    created(stores[0])
    stores[0].release([("s", acquired(stores[0], "s").fence)])
    barrier = threading.Barrier(len(stores))
    won: list[tuple[int, RedisStore, int]] = []

    def race(store: RedisStore) -> None:
        for number in range(50):
            barrier.wait(10)
            with contextlib.suppress(SessionElsewhereError):
                won.append((number, store, acquired(store, "s").fence))
            barrier.wait(10)
            if won[-1][1] is store:
                store.release([("s", won[-1][2])])

    in_threads(race, stores)
    assert [number for number, _, _ in won] == list(range(50))
    fences = [fence for _, _, fence in won]
    assert fences == sorted(set(fences))


def in_threads(work: Callable[[RedisStore], None], stores: list[RedisStore]) -> None:
    failures: list[BaseException] = []

    def run(store: RedisStore) -> None:
        try:
            work(store)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_servers_that_take_turns_lose_none_of_their_changes(open_one: Callable[..., RedisStore]) -> None:
    stores = [open_one() for _ in range(3)]
    session = created(stores[0])
    stores[0].release([("s", session.fence)])

    def count(store: RedisStore) -> None:
        turns = 0
        while turns < 30:
            try:
                lease = acquired(store, "s")
            except SessionElsewhereError:
                time.sleep(0.001)
                continue
            loaded = store.load("s")
            assert loaded is not None
            assert loaded.version == lease.version
            loaded.fence = lease.fence
            apply_changes(store, loaded, more(loaded, loaded.position))
            store.release([("s", lease.fence)])
            turns += 1

    in_threads(count, stores)
    loaded = stores[0].load("s")
    assert loaded is not None
    assert list(loaded.tokens) == list(range(90))


# Repeated commands, and failures of Redis.


def test_changes_that_arrive_twice_are_made_once(store: RedisStore) -> None:
    session = created(store)
    state, call = Snapshot(3, b"state"), call_of("call", 0, 3)
    changes = stamped(
        session,
        Advance("s", 0, 3.0, tokens_of(1, 2, 3), call, state),
        Advance("s", 3, 4.0, tokens_of(4, 5)),
        Rewind("s", 4, 4),
        Advance("s", 4, 5.0, tokens_of(6)),
    )
    for change in changes:
        change.apply(session)
    assert store.apply(changes[:2]) == [None] * 2
    for _ in range(3):
        assert store.apply(changes) == [None] * 4
        assert same(store.load("s"), session)


def test_commands_whose_answers_are_lost_are_sent_again(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command is executed twice."""
    send = store._redis._send
    lost: list[object] = []

    def send_and_lose(commands: Any) -> list[Any]:
        answers = send(commands)
        if lost and lost.pop() is commands:
            return answers
        lost.append(commands)
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(store._redis, "_send", send_and_lose)
    session = long_session(store)
    assert same(store.load("s"), session)
    apply_changes(store, session, Rewind("s", 1500, 1500))
    apply_changes(store, session, more(session, 1, 2))
    assert same(store.load("s"), session)
    (error,) = store.apply([Create(empty())])
    assert isinstance(error, StoreConflictError)
    assert (store.renew({"s": session.fence}), store.count("me")) == ([], 1)
    store.apply([Delete("s", session.fence)])
    assert (store.load("s"), store.count("me")) == (None, 0)


def test_a_create_that_arrives_again_after_the_delete_has_no_effect(store: RedisStore) -> None:
    command = store._command(Create(empty()))
    store._redis.ask([command])
    store.apply([Delete("s", acquired(store, "s").fence)])
    store._redis.ask([command])
    assert store.load("s") is None
    assert store.apply([Create(empty())]) == [None]


def test_an_acquisition_that_arrives_twice_grants_one_lease(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    ask = store._redis.ask
    monkeypatch.setattr(store._redis, "ask", lambda commands: sent.append(commands) or ask(commands))
    session = created(store)
    ask(sent[-1])  # The same command again, late.
    apply_changes(store, session, more(session, 1))


def test_scripts_are_loaded_again_into_a_redis_that_has_lost_them(store: RedisStore, redis: RedisServer) -> None:
    session = created(store)
    redis.ask("SCRIPT", "FLUSH")
    apply_changes(store, session, more(session, 1))
    assert same(store.load("s"), session)


def test_changes_wait_for_a_redis_that_freezes_for_a_while(
    open_one: Callable[..., RedisStore], redis: RedisServer
) -> None:
    store = open_one()
    session = created(store)
    apply_changes(store, session, more(session, 1))
    redis.freeze()
    thaw = threading.Timer(5.0, redis.thaw)
    thaw.start()
    started = time.monotonic()
    apply_changes(store, session, more(session, 2), replace(more(session, 3), start=2))
    assert time.monotonic() - started > 4.5
    thaw.join()
    assert same(store.load("s"), session)
    assert store.renew({"s": session.fence}) == []


def test_changes_wait_for_a_redis_that_is_killed_and_restarted(tmp_path: Path) -> None:
    with redis_running(tmp_path, append_only=True) as redis, contextlib.closing(RedisStore(redis.url)) as store:
        session = long_session(store)
        over = threading.Event()

        def advance(store: RedisStore) -> None:
            while not over.is_set():
                apply_changes(
                    store,
                    session,
                    *(replace(more(session, number), start=session.position + number) for number in range(3)),
                )

        writer = threading.Thread(target=in_threads, args=(advance, [store]))
        writer.start()
        before = session.position
        for away in (5.0, 0.0, 0.0):
            time.sleep(0.3)
            redis.kill()
            time.sleep(away)
            redis.start()
        time.sleep(0.3)
        over.set()
        writer.join(20)
        assert not writer.is_alive()
        assert session.position > before
        assert same(store.load("s"), session)
        assert store.renew({"s": session.fence}) == []


def test_a_redis_that_is_away_for_too_long_is_reported(open_one: Callable[..., RedisStore], redis: RedisServer) -> None:
    store = open_one(patience=1.0)
    session = created(store)
    redis.freeze()
    started = time.monotonic()
    try:
        with pytest.raises(StoreUnavailableError, match=r"store: Redis has not answered for 1 seconds"):
            store.apply(stamped(session, more(session, 1)))
    finally:
        redis.thaw()
    assert time.monotonic() - started < 4.0
    # Whether the change was made or not, the session continues from what the store has.
    loaded = store.load("s")
    assert loaded is not None
    apply_changes(store, leased(store, loaded), more(loaded, 2))
    assert list(loaded.tokens) in ([1, 2], [2])
    assert same(store.load("s"), loaded)


def test_full_memory_is_reported_and_harms_nothing(store: RedisStore, redis: RedisServer) -> None:
    session = created(store)
    apply_changes(store, session, more(session, *range(2000)))
    used = int(redis.ask("INFO", "memory")["used_memory"])
    redis.ask("CONFIG", "SET", "maxmemory", used + 1_000_000)
    try:
        errors = []
        while not errors:
            following = stamped(session, more(session, *range(10_000)))
            if (error := store.apply(following)[0]) is not None:
                errors.append(error)
            else:
                following[0].apply(session)
        assert isinstance(errors[0], StoreFullError)
        assert "there is no space left for sessions. Delete sessions, or raise maxmemory" in str(errors[0])
        redis.ask("CONFIG", "SET", "maxmemory", used // 2)  # Independent of the memory of the connections.
        refused = store.apply([Create(empty("new")), *stamped(session, more(session, 1), Advance("s", 0, 3.0))])
        assert [type(error) for error in refused[:2]] == [StoreFullError] * 2
        assert refused[2] is not None
        assert same(store.load("s"), session)
        assert store.load("new") is None
        # Changes that free memory, and leases, which they need, work even now.
        store.release([("s", session.fence)])
        leased(store, session)
        assert store.renew({"s": session.fence}) == []
        apply_changes(store, session, Rewind("s", 1000, 1000))
        assert same(store.load("s"), session)
        assert store.apply([Delete("s", session.fence)]) == [None]
        assert store.load("s") is None
        redis.ask("CONFIG", "SET", "maxmemory", used + 1_000_000)
        assert store.apply([Create(empty("new"))]) == [None]
    finally:
        redis.ask("CONFIG", "SET", "maxmemory", 0)


# Opening.


def test_the_error_says_why_a_store_cannot_be_opened(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with pytest.raises(
        StoreOpenError,
        match=r"127.0.0.1:9/0; it cannot be opened: .*refused. Check that Redis is running there",
    ):
        RedisStore("redis://127.0.0.1:9")
    assert time.monotonic() - started < 4.0
    with pytest.raises(StoreOpenError, match="redis-py refuses the URL"):
        RedisStore(f"{redis.url}?nonsense=1")
    with pytest.raises(StoreOpenError, match="it cannot be opened"):
        RedisStore(redis.url.replace("/0", "/99"))
    with pytest.raises(StoreOpenError, match="it cannot be opened"):
        RedisStore(f"unix://{tmp_path}/nobody")
    with pytest.raises(StoreOpenError, match=r"unix:///nowhere; it cannot be opened: .*No such file"):
        open_store(Settings(store=SecretStr("unix:///nowhere")))
    monkeypatch.setattr("elman_server.sessions.stores.redis.connection.MIN_VERSION", (99, 0))
    with pytest.raises(StoreOpenError, match=r"it is Redis \d.*, and sessions need 99.0 or later. Upgrade Redis"):
        RedisStore(redis.url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret/@localhost/0",
        "redis://user:secret#@localhost/0",
        "redis://:secret@localhost:port/0",
        "redis://:secret@localhost/database",
        "redis://:secret@[::/0",
        "http://:secret@localhost/0",
    ],
)
def test_the_error_of_an_invalid_url_does_not_repeat_it(url: str) -> None:
    with pytest.raises(StoreOpenError, match="expected redis://HOST:PORT/DATABASE") as refusal:
        RedisStore(url)
    assert "secret" not in str(refusal.value)


def test_no_message_contains_the_password(redis: RedisServer) -> None:
    with pytest.raises(StoreOpenError, match="password") as refusal:
        RedisStore(redis.url.replace("//", "//somebody:secret@"))
    assert "secret" not in str(refusal.value)
    assert public_name("rediss://user:secret@HOST/1") == "rediss://host:6379/1"
    assert public_name("unix://user:secret@/run/redis.sock?db=1&password=secret") == "unix:///run/redis.sock"
    assert public_name("redis://:secret@[::1]:7000") == "redis://[::1]:7000/0"


def test_a_redis_that_may_evict_sessions_causes_a_warning(redis: RedisServer) -> None:
    redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with capture_logs() as logs:
            RedisStore(redis.url).close()
    finally:
        redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert [entry["event"] for entry in logs] == ["Redis may evict sessions"]


def test_a_redis_url_selects_the_redis_store(redis: RedisServer) -> None:
    store = open_store(Settings(store=SecretStr(redis.url)))
    assert isinstance(store, RedisStore)
    assert store.shared
    store.close()


def test_damage_of_one_session_does_not_affect_the_leases_of_others(store: RedisStore, redis: RedisServer) -> None:
    created(store, "sound", version=7)
    redis.ask("SET", key_of("damaged", "lease"), "no hash")
    damaged, sound = store.acquire(["damaged", "sound"])
    assert isinstance(damaged, StoreUnavailableError)
    assert isinstance(sound, Lease)
    redis.ask("SET", key_of("damaged", "header"), "no hash")
    assert store.versions(["damaged", "sound", "nobody"]) == [None, 7, None]
