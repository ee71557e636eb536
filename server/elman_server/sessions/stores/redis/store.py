"""The store on Redis or Valkey."""

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
from elman_server.sessions.changes import Advance, Change, Create, Delete, Rewind
from elman_server.sessions.session import Session
from elman_server.sessions.stores.interface import Lease, Summary
from elman_server.sessions.stores.redis import scripts
from elman_server.sessions.stores.redis.connection import Connection, raise_first
from elman_server.sessions.stores.redis.keys import CHECK, IDS, USED, caller_key, key_of
from elman_server.sessions.stores.redis.records import (
    StoredSession,
    advance_arguments,
    create_arguments,
    summary_of,
    to_dict,
)
from elman_server.sessions.stores.redis.scripts import Command, run_script

_REPAIR_VERSIONS = 2**20  # that a repair skips; more than the changes that can be under way
_REPAIR_ATTEMPTS = 5  # after each of which another server may have advanced the session
_GONE_SECONDS = 60.0  # beyond the patience: how late a repeated change may arrive

_log = structlog.get_logger(__name__)


class RedisStore:
    """Keeps sessions in Redis or Valkey, 6.2 or later; implements `Store` for several servers.

    What survives the end of Redis itself depends on its persistence: with `appendonly yes` all but the last second.

    Args:
        url: redis://[USER:PASSWORD@]HOST:PORT/DATABASE, rediss:// for TLS, or unix:///PATH.
        owner: distinguishes the leases of this server from those of others; "" for a random one.
        lease_seconds: time after which another server can take over the session of a dead one.
        patience: seconds for which Redis may be away before calls fail.

    Raises:
        StoreOpenError: the URL is invalid, nothing answers there, or it is not a suitable Redis.
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
        return [self._outcome(change, answer) for change, answer in zip(changes, answers, strict=True)]

    def _command(self, change: Change) -> Command:
        name = change.session_id
        if isinstance(change, Create):
            return run_script(scripts.CREATE, name, secrets.token_hex(8), *create_arguments(change.session))
        if isinstance(change, Delete):
            return run_script(scripts.DELETE, name, change.fence, name, caller_key(""), self._gone_milliseconds)
        expected = (change.version, change.fence)
        if isinstance(change, Rewind):
            return run_script(scripts.REWIND, name, *expected, change.position, change.state_position)
        return run_script(scripts.ADVANCE, name, *expected, *advance_arguments(change))

    def _outcome(self, change: Change, answer: Any) -> StoreError | None:
        if isinstance(answer, Exception):
            return self._redis.translated(answer)
        outcome, *known = (part.decode() for part in answer)
        if outcome == "kept":
            return None
        version, position = known
        name = change.session_id
        if outcome == "moved":
            return SessionMovedError(name)
        if isinstance(change, Create):
            return StoreConflictError(name, "it exists already")
        assert not isinstance(change, Delete)  # It is refused only if the session has moved.
        if not version:
            return StoreConflictError(name, "it does not exist")
        return StoreConflictError(name, f"it is at version {version} and position {position}; {_expectation(change)}")

    def load(self, session_id: str) -> Session | None:
        for _ in range(_REPAIR_ATTEMPTS):
            stored = self._read(session_id)
            if stored is None or stored.is_complete or self._repair(stored):
                return None if stored is None else stored.session
        raise StoreUnavailableError(f"session {session_id!r} is damaged, and advances while it is repaired")

    def _read(self, session_id: str) -> StoredSession | None:
        (answer,) = self._redis.ask([run_script(scripts.READ, session_id)])
        try:
            raise_first([answer])
            header, log, states, calls, order = answer
            if not header:
                return None
            return StoredSession(session_id, to_dict(header), log, to_dict(states), to_dict(calls), order)
        except (LookupError, ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and "WRONGTYPE" not in str(error):
                raise self._redis.translated(error) from error
            raise SessionDamagedError(session_id) from error

    def _repair(self, stored: StoredSession) -> bool:
        """Cut off the damaged end of a session in the store, so that new tokens are appended to undamaged ones; changes
        that are under way are refused.

        Returns:
            False if another server has advanced the session meanwhile.
        """
        session, version = stored.session, stored.session.version
        _log.error(
            "session damaged",
            session_id=session.session_id,
            position=stored.position,
            recovered_position=session.position,
        )
        session.version += _REPAIR_VERSIONS
        arguments = (version, session.version, stored.piece_count, session.position)
        return bool(self._ask_one(run_script(scripts.REPAIR, session.session_id, *arguments)))

    def page(self, after: str, count: int) -> list[Summary]:
        found: list[Summary] = []
        least = f"({after}" if after else "-"
        while True:
            missing = count - len(found)
            ids = [name.decode() for name in self._ask_one(("ZRANGEBYLEX", IDS, least, "+", "LIMIT", 0, missing))]
            headers = self._redis.ask([("HGETALL", key_of(session_id, "header")) for session_id in ids])
            found += [summary for header in headers if (summary := summary_of(header)) is not None]
            if len(ids) < missing or len(found) == count:
                return found
            least = f"({ids[-1]}"

    def expired(self, before: float) -> list[str]:
        ids = [name.decode() for name in self._ask_one(("ZRANGEBYSCORE", USED, "-inf", f"({before!r}"))]
        exist = self._redis.ask([("EXISTS", key_of(session_id, "header")) for session_id in ids])
        raise_first(exist)
        # Remains of sessions that Redis has evicted are of no use.
        self.apply([Delete(session_id) for session_id, exists in zip(ids, exist, strict=True) if not exists])
        return [session_id for session_id, exists in zip(ids, exist, strict=True) if exists]

    def count(self, caller: str) -> int:
        return int(self._ask_one(("SCARD", caller_key(caller))))

    def versions(self, session_ids: Sequence[str]) -> list[int | None]:
        answers = self._redis.ask([("HGET", key_of(session_id, "header"), "version") for session_id in session_ids])
        # `load` reports damage.
        return [int(answer) if isinstance(answer, bytes) and answer.isdigit() else None for answer in answers]

    def acquire(self, session_ids: Sequence[str]) -> list[Lease | SessionError]:
        arguments = (self._owner, secrets.token_hex(8), self._lease_milliseconds)
        answers = self._redis.ask([run_script(scripts.ACQUIRE, session_id, *arguments) for session_id in session_ids])
        return [self._lease(session_id, answer) for session_id, answer in zip(session_ids, answers, strict=True)]

    def _lease(self, session_id: str, answer: Any) -> Lease | SessionError:
        if isinstance(answer, Exception):
            return self._redis.translated(answer)
        acquired, number, version = answer
        if acquired:
            return Lease(int(number), int(version))
        return SessionElsewhereError(session_id, max(int(number), 0) / 1000)

    def renew(self, fences: Mapping[str, int]) -> list[str]:
        commands = [
            run_script(scripts.RENEW, session_id, self._owner, fence, self._lease_milliseconds)
            for session_id, fence in fences.items()
        ]
        answers = self._redis.ask(commands)
        return [session_id for session_id, answer in zip(fences, answers, strict=True) if answer == 0]

    def release(self, fences: Sequence[tuple[str, int]]) -> list[StoreError | None]:
        answers = self._redis.ask([run_script(scripts.RELEASE, name, self._owner, fence) for name, fence in fences])
        return [self._redis.translated(answer) if isinstance(answer, Exception) else None for answer in answers]

    def check(self) -> None:
        (answer,) = self._redis.ask([("SET", CHECK, "", "PX", 1)])
        if isinstance(answer, Exception):
            raise self._redis.translated(answer)

    def close(self) -> None:
        self._redis.close()

    def _ask_one(self, command: Command) -> Any:
        (answer,) = self._redis.ask([command])
        if isinstance(answer, Exception):
            raise self._redis.translated(answer)
        return answer


def _expectation(change: Advance | Rewind) -> str:
    if isinstance(change, Advance):
        return f"the change starts from version {change.version - 1} and position {change.start}"
    return f"the change goes back from version {change.version - 1} to position {change.position}"
