"""The store in one SQLite file: nothing to install, and what is committed survives the process.

Write-ahead log, one transaction for all the changes that have gathered. Everything a row says is under a checksum:
tokens in segments of a fixed number, states, calls and the session itself. What is damaged is left out when a session
is loaded: of the tokens everything from there on, of the states and calls that one. Whoever goes on from there computes
again what is missing, and never from a wrong state.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from enum import Enum
from pathlib import Path
from zlib import crc32

import structlog

from server.sessions.errors import (
    SessionDamagedError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreOpenError,
    StoreUnavailableError,
)
from server.sessions.session import (
    REMEMBERED_CALLS,
    TOKEN_BYTES,
    TOKEN_TYPE,
    Advance,
    Call,
    Change,
    Create,
    Delete,
    Rewind,
    Session,
    Snapshot,
)
from server.sessions.store import SoleOwner, Summary

_SEGMENT = 1024  # tokens
_FORMAT = 1
_BUSY_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    key INTEGER PRIMARY KEY, session_id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, digest TEXT NOT NULL,
    seed INTEGER NOT NULL, caller TEXT NOT NULL, created REAL NOT NULL, used REAL NOT NULL, position INTEGER NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_by_use ON sessions (used);
CREATE INDEX IF NOT EXISTS sessions_by_caller ON sessions (caller);
CREATE TABLE IF NOT EXISTS segments (
    key INTEGER NOT NULL, number INTEGER NOT NULL, tokens BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (key, number)
);
CREATE TABLE IF NOT EXISTS snapshots (
    key INTEGER NOT NULL, position INTEGER NOT NULL, state BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (key, position)
);
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY, key INTEGER NOT NULL, request_id TEXT NOT NULL, fingerprint BLOB NOT NULL,
    start INTEGER NOT NULL, prompt_count INTEGER NOT NULL, generated_count INTEGER NOT NULL, outcome TEXT NOT NULL,
    answer BLOB NOT NULL, checksum INTEGER NOT NULL, UNIQUE (key, request_id)
);
"""

_KEY = "(SELECT key FROM sessions WHERE session_id = ?)"
_ADD_TOKENS = f"""
INSERT INTO segments VALUES ({_KEY}, ?, ?, ?) ON CONFLICT (key, number) DO UPDATE SET
    tokens = CAST(tokens || excluded.tokens AS BLOB), checksum = continued_crc32(excluded.tokens, checksum)
"""
_ADD_SNAPSHOT = f"INSERT OR REPLACE INTO snapshots VALUES ({_KEY}, ?, ?, ?)"
_ADD_CALL = f"INSERT OR REPLACE INTO calls VALUES (NULL, {_KEY}, ?, ?, ?, ?, ?, ?, ?, ?)"
_FORGET_CALLS = f"""
DELETE FROM calls WHERE number IN (
    SELECT number FROM calls WHERE key = {_KEY} ORDER BY number DESC LIMIT -1 OFFSET {REMEMBERED_CALLS})
"""
_SUMMARY = "session_id, model, digest, seed, created, used, position"

_log = structlog.get_logger(__name__)


class Fsync(Enum):
    """When what is committed is forced to the disk. A killed server loses nothing by any of them; what differs is what
    a power failure may take."""

    ALWAYS = "always"  # nothing that was acknowledged
    CHECKPOINT = "checkpoint"  # what came since the last checkpoint of the write-ahead log
    NEVER = "never"  # what the system has not written by itself, and perhaps the file's soundness


_SYNCHRONOUS = {Fsync.ALWAYS: "FULL", Fsync.CHECKPOINT: "NORMAL", Fsync.NEVER: "OFF"}


class SqliteStore(SoleOwner):
    """Keeps sessions in a file that one server at a time has open; implements `Store`.

    Args:
        path: the file; made if it is not there.
        fsync: when writes are forced to the disk.

    Raises:
        StoreOpenError: it cannot be made or read, is something else, or another server has it.
    """

    blocks = True

    def __init__(self, path: Path, fsync: Fsync = Fsync.CHECKPOINT) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            self._open(fsync)
        except sqlite3.OperationalError as error:
            reason = "another server has it open" if "locked" in str(error) else str(error)
            raise StoreOpenError(f"{path}: the sessions cannot be opened: {reason}") from error
        except sqlite3.DatabaseError as error:
            raise StoreOpenError(f"{path}: is no store of sessions, or a damaged one: {error}") from error
        except OSError as error:
            raise StoreOpenError(f"{path}: the sessions cannot be opened: {error.strerror}") from error

    def _open(self, fsync: Fsync) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {_SYNCHRONOUS[fsync]}")
        self._connection.create_function("continued_crc32", 2, crc32, deterministic=True)
        (version,) = run("PRAGMA user_version").fetchone()
        if version not in (0, _FORMAT):
            raise StoreOpenError(f"{self._path}: has format {version}, this server reads format {_FORMAT}")
        run("BEGIN IMMEDIATE")  # From here on nobody else can open it.
        for statement in _SCHEMA.split(";"):
            run(statement)
        run(f"PRAGMA user_version = {_FORMAT}")
        run("COMMIT")

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        with self._lock, self._transaction():
            return [self._apply(change) for change in changes]

    def _apply(self, change: Change) -> StoreError | None:
        if isinstance(change, Advance):
            return self._advance(change)
        if isinstance(change, Create):
            return self._create(change.session)
        if isinstance(change, Rewind):
            self._rewind(change)
        else:
            self._delete(change)
        return None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _named_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _create(self, session: Session) -> StoreError | None:
        fixed = _fixed(session)
        inserted = self._connection.execute(
            "INSERT OR IGNORE INTO sessions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*fixed, session.used, session.position, _checksum(*fixed)),
        )
        if not inserted.rowcount:
            return StoreConflictError(f"{self._path}: there is a session {session.session_id!r} already")
        self._add_tokens(session.session_id, 0, session.tokens)
        for snapshot in session.snapshots:
            self._add_snapshot(session.session_id, snapshot)
        for call in session.calls.values():
            self._add_call(session.session_id, call)
        return None

    def _advance(self, change: Advance) -> StoreError | None:
        session_id = change.session_id
        updated = self._connection.execute(
            "UPDATE sessions SET used = ?, position = ? WHERE session_id = ? AND position = ?",
            (change.used, change.start + len(change.tokens), session_id, change.start),
        )
        if not updated.rowcount:
            return StoreConflictError(f"{self._path}: session {session_id!r} is not at position {change.start}")
        if change.tokens:
            self._add_tokens(session_id, change.start, change.tokens)
        if change.dropped:
            self._connection.executemany(
                f"DELETE FROM snapshots WHERE key = {_KEY} AND position = ?",
                [(session_id, position) for position in change.dropped],
            )
        if change.snapshot is not None:
            self._add_snapshot(session_id, change.snapshot)
        if change.call is not None:
            self._add_call(session_id, change.call)
        return None

    def _add_tokens(self, session_id: str, start: int, tokens: array[int]) -> None:
        done = 0
        while done < len(tokens):
            number, within = divmod(start + done, _SEGMENT)
            part = tokens[done : done + _SEGMENT - within].tobytes()
            self._connection.execute(_ADD_TOKENS, (session_id, number, part, crc32(part)))
            done += len(part) // TOKEN_BYTES

    def _add_snapshot(self, session_id: str, snapshot: Snapshot) -> None:
        row = (session_id, snapshot.position, snapshot.state, crc32(snapshot.state, snapshot.position))
        self._connection.execute(_ADD_SNAPSHOT, row)

    def _add_call(self, session_id: str, call: Call) -> None:
        self._connection.execute(_ADD_CALL, (session_id, *astuple(call), _checksum(*astuple(call))))
        if call.outcome or not call.generated_count:  # It is new, or was made at once.
            self._connection.execute(_FORGET_CALLS, (session_id,))

    def _rewind(self, change: Rewind) -> None:
        run, session_id = self._connection.execute, change.session_id
        number, within = divmod(change.position, _SEGMENT)
        kept = run(f"SELECT tokens FROM segments WHERE key = {_KEY} AND number = ?", (session_id, number)).fetchone()
        run(f"DELETE FROM segments WHERE key = {_KEY} AND number >= ?", (session_id, number))
        if kept and within:
            part = kept[0][: within * TOKEN_BYTES]
            run(_ADD_TOKENS, (session_id, number, part, crc32(part)))
        run(f"DELETE FROM snapshots WHERE key = {_KEY} AND position > ?", (session_id, change.state_position))
        run(
            f"DELETE FROM calls WHERE key = {_KEY} AND (start + prompt_count + generated_count > ? OR outcome = '')",
            (session_id, change.position),
        )
        run("UPDATE sessions SET position = ? WHERE session_id = ?", (change.position, session_id))

    def _delete(self, change: Delete) -> None:
        for table in ("segments", "snapshots", "calls", "sessions"):
            self._connection.execute(f"DELETE FROM {table} WHERE key = {_KEY}", (change.session_id,))

    def load(self, session_id: str) -> Session | None:
        with self._lock, _named_errors(self._path):
            run = self._connection.execute
            row = run("SELECT * FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
            if row is None:
                return None
            key, *fixed, _, position, checksum = row
            if _checksum(*fixed) != checksum:
                raise SessionDamagedError(f"{self._path}: what it holds of session {session_id!r} is damaged")
            session = Session(*row[1:8])
            segments = run("SELECT number, tokens, checksum FROM segments WHERE key = ? ORDER BY number", (key,))
            session.tokens = _sound_tokens(segments, position)
            snapshots = run("SELECT position, state, checksum FROM snapshots WHERE key = ? ORDER BY position", (key,))
            session.snapshots = [
                Snapshot(at, state)
                for at, state, checksum in snapshots
                if crc32(state, at) == checksum and at <= session.position
            ]
            calls = run("SELECT * FROM calls WHERE key = ? ORDER BY number", (key,)).fetchall()
            for _, _, *values, checksum in calls:
                call = Call(*values)
                if _checksum(*values) == checksum and call.end <= session.position:
                    session.calls[call.request_id] = call
        if session.position < position:
            _log.error("session damaged", session=session_id, position=position, recovered=session.position)
            self.apply([Rewind(session_id, session.position, session.position)])  # What follows is added to sound rows.
        return session

    def page(self, after: str, count: int) -> list[Summary]:
        with self._lock, _named_errors(self._path):
            rows = self._connection.execute(
                f"SELECT {_SUMMARY} FROM sessions WHERE session_id > ? ORDER BY session_id LIMIT ?", (after, count)
            ).fetchall()
        return [Summary(*row) for row in rows]

    def expired(self, before: float) -> list[str]:
        with self._lock, _named_errors(self._path):
            rows = self._connection.execute("SELECT session_id FROM sessions WHERE used < ?", (before,)).fetchall()
        return [session_id for (session_id,) in rows]

    def count(self, caller: str) -> int:
        with self._lock, _named_errors(self._path):
            query = "SELECT count(*) FROM sessions WHERE caller = ?"
            (count,) = self._connection.execute(query, (caller,)).fetchone()
        return int(count)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _fixed(session: Session) -> tuple[object, ...]:
    """What never changes about a session."""
    return (session.session_id, session.model, session.digest, session.seed, session.caller, session.created)


def _checksum(*values: object) -> int:
    return crc32(repr(values).encode())


def _sound_tokens(segments: Iterator[tuple[int, bytes, int]], position: int) -> array[int]:
    """The tokens before the first segment that is missing, short or damaged; at most `position`."""
    tokens = array(TOKEN_TYPE)
    for number, part, checksum in segments:
        if len(tokens) != number * _SEGMENT or crc32(part) != checksum or len(part) % TOKEN_BYTES:
            break
        tokens.frombytes(part)
    del tokens[position:]
    return tokens


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StoreFullError(f"{path}: there is no space left for sessions") from error
        raise StoreUnavailableError(f"{path}: the store of sessions has failed: {error}") from error
