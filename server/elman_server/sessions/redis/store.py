"""The store on Redis or Valkey, which several servers share: where one of them ends, another goes on.

A change is one Lua script, so that it is kept whole or not at all; the scripts of the changes that have gathered go in
one pipeline. An answer may get lost on the way and the same pipeline be sent again, and what was sent first may even
arrive later: a change that is kept already is told by its version and not made twice.

Who has a session is said by a lease, a key that ends by itself, and by a fence, a number that grows with every lease
and that the session carries: what comes under an older fence is refused, however late it comes. Fences are times, so
that they grow even where Redis has forgotten the latest of them, or the session is a new one under an old id.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis.exceptions import ResponseError

from elman_server.errors import (
    SessionDamagedError,
    SessionElsewhereError,
    SessionError,
    SessionMovedError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
)
from elman_server.sessions.redis.connection import Connection, raise_first
from elman_server.sessions.redis.records import Held, creation, pairs, progress, summary_of
from elman_server.sessions.redis.scripts import (
    ACQUIRE,
    ADVANCE,
    CREATE,
    DELETE,
    IDS,
    READ,
    RELEASE,
    RENEW,
    REPAIR,
    REWIND,
    USED,
    Command,
    caller_key,
    key_of,
    run_script,
)
from elman_server.sessions.session import Advance, Change, Create, Delete, Rewind, Session
from elman_server.sessions.store import Lease, Summary

_OUT_OF_REACH = 2**20  # more changes than can be under way when a session is repaired
_REPAIRS = 5  # times that one begins again because somebody has advanced the session meanwhile
_GONE_SECONDS = 60.0  # beyond the patience: how late a change may arrive that has been sent twice

_log = structlog.get_logger(__name__)


class RedisStore:
    """Keeps sessions in Redis or Valkey, 6.2 or later; implements `Store` for several servers at once.

    What survives the end of Redis itself is what its own persistence has: with `appendonly yes` all but the last
    second.

    Args:
        url: redis://[USER:PASSWORD@]HOST:PORT/DATABASE, rediss:// for TLS, or unix:///PATH.
        owner: by which leases tell this server from the others; "" for a random one.
        lease_seconds: after which a session whose server is dead can be had by another one.
        patience: for how many seconds Redis may be away before calls fail.

    Raises:
        StoreOpenError: the URL is none, nothing answers there, or it is something else.
    """

    shared = True
    blocks = True

    def __init__(self, url: str, *, owner: str = "", lease_seconds: float = 5.0, patience: float = 10.0) -> None:
        self._owner = owner or secrets.token_hex(8)
        self._lease_milliseconds = round(1000 * lease_seconds)
        self._gone_milliseconds = round(1000 * (patience + _GONE_SECONDS))
        self._redis = Connection(url, patience)

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        answers = self._redis.ask([self._command(change) for change in changes])
        return [self._verdict(change, answer) for change, answer in zip(changes, answers, strict=True)]

    def _command(self, change: Change) -> Command:
        if isinstance(change, Create):
            return run_script(CREATE, change.session_id, secrets.token_hex(8), *creation(change.session))
        if isinstance(change, Delete):
            callers = caller_key("")
            given = (change.fence, change.session_id, callers, self._gone_milliseconds)
            return run_script(DELETE, change.session_id, *given)
        standing = (change.version, change.fence)
        if isinstance(change, Rewind):
            return run_script(REWIND, change.session_id, *standing, change.position, change.state_position)
        return run_script(ADVANCE, change.session_id, *standing, *progress(change))

    def _verdict(self, change: Change, answer: Any) -> StoreError | None:
        if isinstance(answer, Exception):
            return self._redis.named(answer)
        verdict, *standing = (part.decode() for part in answer)
        if verdict == "kept":
            return None
        version, position = standing
        where = f"{self._redis.name}: session {change.session_id!r}"
        if verdict == "moved":
            return SessionMovedError(f"{where} is another server's now")
        if isinstance(change, Create):
            return StoreConflictError(f"{where} is there already")
        if not version:
            return StoreConflictError(f"{where} is not there")
        return StoreConflictError(f"{where} is at version {version} and position {position}: {_beginning(change)}")

    def load(self, session_id: str) -> Session | None:
        for _ in range(_REPAIRS):
            held = self._read(session_id)
            if held is None or held.sound or self._repair(held):
                return None if held is None else held.session
        raise StoreUnavailableError(
            f"{self._redis.name}: session {session_id!r} is damaged, and goes on while it is being repaired: try again"
        )

    def _read(self, session_id: str) -> Held | None:
        (answer,) = self._redis.ask([run_script(READ, session_id)])
        try:
            raise_first([answer])
            header, log, states, calls, order = answer
            return Held(session_id, pairs(header), log, pairs(states), pairs(calls), order) if header else None
        except (LookupError, ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and "WRONGTYPE" not in str(error):
                raise self._redis.named(error) from error
            raise SessionDamagedError(self._redis.name, session_id) from error

    def _repair(self, held: Held) -> bool:
        """Have the stored session end where its soundness does, so that what follows is added to what is sound. Whoever
        is advancing it from beyond that is refused. False: somebody has advanced it already."""
        session, known = held.session, held.session.version
        _log.error("session damaged", session=session.session_id, position=held.position, recovered=session.position)
        session.version += _OUT_OF_REACH
        given = (known, session.version, held.pieces, session.position)
        return bool(self._one(run_script(REPAIR, session.session_id, *given)))

    def page(self, after: str, count: int) -> list[Summary]:
        found: list[Summary] = []
        least = f"({after}" if after else "-"
        while True:
            wanted = count - len(found)
            ids = [name.decode() for name in self._one(("ZRANGEBYLEX", IDS, least, "+", "LIMIT", 0, wanted))]
            headers = self._redis.ask([("HGETALL", key_of(session_id, "header")) for session_id in ids])
            found += [summary for header in headers if (summary := summary_of(header)) is not None]
            if len(ids) < wanted or len(found) == count:
                return found
            least = f"({ids[-1]}"

    def expired(self, before: float) -> list[str]:
        ids = [found.decode() for found in self._one(("ZRANGEBYSCORE", USED, "-inf", f"({before!r}"))]
        there = self._redis.ask([("EXISTS", key_of(session_id, "header")) for session_id in ids])
        raise_first(there)
        # What Redis has lost of a session by itself, having been told to evict keys, is of no use to anybody.
        self.apply([Delete(session_id) for session_id, found in zip(ids, there, strict=True) if not found])
        return [session_id for session_id, found in zip(ids, there, strict=True) if found]

    def count(self, caller: str) -> int:
        return int(self._one(("SCARD", caller_key(caller))))

    def versions(self, session_ids: Sequence[str]) -> list[int | None]:
        answers = self._redis.ask([("HGET", key_of(session_id, "header"), "version") for session_id in session_ids])
        # What is damaged is for `load` to find.
        return [int(answer) if isinstance(answer, bytes) and answer.isdigit() else None for answer in answers]

    def acquire(self, session_ids: Sequence[str]) -> list[Lease | SessionError]:
        given = (self._owner, secrets.token_hex(8), self._lease_milliseconds)
        answers = self._redis.ask([run_script(ACQUIRE, session_id, *given) for session_id in session_ids])
        return [self._lease(session_id, answer) for session_id, answer in zip(session_ids, answers, strict=True)]

    def _lease(self, session_id: str, answer: Any) -> Lease | SessionError:
        if isinstance(answer, Exception):
            return self._redis.named(answer)
        had, number, version = answer
        if had:
            return Lease(int(number), int(version))
        return SessionElsewhereError(session_id, max(int(number), 0) / 1000)

    def renew(self, fences: Mapping[str, int]) -> list[str]:
        commands = [
            run_script(RENEW, session_id, self._owner, fence, self._lease_milliseconds)
            for session_id, fence in fences.items()
        ]
        answers = self._redis.ask(commands)
        return [session_id for session_id, answer in zip(fences, answers, strict=True) if answer == 0]

    def release(self, fences: Sequence[tuple[str, int]]) -> list[StoreError | None]:
        answers = self._redis.ask([run_script(RELEASE, name, self._owner, fence) for name, fence in fences])
        return [self._redis.named(answer) if isinstance(answer, Exception) else None for answer in answers]

    def close(self) -> None:
        self._redis.close()

    def _one(self, command: Command) -> Any:
        (answer,) = self._redis.ask([command])
        if isinstance(answer, Exception):
            raise self._redis.named(answer)
        return answer


def _beginning(change: Change) -> str:
    if isinstance(change, Advance):
        return f"it cannot go on from version {change.version - 1} and position {change.start}"
    assert isinstance(change, Rewind)
    return f"it cannot go back from version {change.version - 1} to position {change.position}"
