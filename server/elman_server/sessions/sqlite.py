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
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any
from zlib import crc32

import structlog

from elman_server.errors import (
    SessionDamagedError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreOpenError,
    StoreUnavailableError,
)
from elman_server.sessions.session import (
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
from elman_server.sessions.store import SoleOwner, Summary
from elman_server.settings import Fsync

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
# Statements for many rows at once: between two statements the interpreter is fought for, within one it is not.
_MOVE = """
UPDATE sessions SET used = moved.column4, position = moved.column3 FROM (VALUES {rows}) AS moved
WHERE session_id = moved.column1 AND position = moved.column2 RETURNING session_id, key
"""
_ADD_TOKENS = """
INSERT INTO segments VALUES {rows} ON CONFLICT (key, number) DO UPDATE SET
    tokens = CAST(tokens || excluded.tokens AS BLOB), checksum = excluded.checksum
"""
_ADD_SNAPSHOTS = "INSERT OR REPLACE INTO snapshots VALUES {rows}"
_DROP_SNAPSHOTS = "DELETE FROM snapshots WHERE (key, position) IN (VALUES {rows})"
_ADD_CALLS = "INSERT OR REPLACE INTO calls VALUES {rows}"
_FORGET_CALLS = f"""
DELETE FROM calls WHERE number IN (SELECT number FROM (
    SELECT number, row_number() OVER (PARTITION BY key ORDER BY number DESC) AS age
    FROM calls WHERE key IN (VALUES {{rows}}))
WHERE age > {REMEMBERED_CALLS})
"""
_ROWS_AT_ONCE = 500
_KNOWN_TAILS = 10_000
_SUMMARY = "session_id, model, digest, seed, created, used, position"
# What a list can show; whether it is right only a look at the whole session tells.
_SOUND = """typeof(seed) = 'integer' AND typeof(created) = 'real' AND typeof(used) = 'real'
    AND typeof(position) = 'integer' AND created BETWEEN 0 AND 1e11 AND used BETWEEN 0 AND 1e11 AND position >= 0"""

_log = structlog.get_logger(__name__)

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
        # By session: its position, and the checksum of its last segment, to which the next tokens are added.
        self._tails: OrderedDict[str, tuple[int, int]] = OrderedDict()
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
        (version,) = run("PRAGMA user_version").fetchone()
        if version not in (0, _FORMAT):
            raise StoreOpenError(f"{self._path}: has format {version}, this server reads format {_FORMAT}")
        run("BEGIN IMMEDIATE")  # From here on nobody else can open it.
        for statement in _SCHEMA.split(";"):
            run(statement)
        run(f"PRAGMA user_version = {_FORMAT}")
        run("COMMIT")

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        # By session: what follows a change that is not kept is not to be kept, either.
        refused: dict[str, StoreError] = {}
        errors: list[StoreError | None] = []
        with self._lock, self._transaction():
            for advances, group in groupby(changes, lambda change: isinstance(change, Advance)):
                if advances:
                    errors += self._advance([change for change in group if isinstance(change, Advance)], refused)
                else:
                    errors += [self._apply(change, refused) for change in group]
        return errors

    def _apply(self, change: Change, refused: dict[str, StoreError]) -> StoreError | None:
        if change.session_id in refused:
            return refused[change.session_id]
        error = self._apply_one(change)
        if error is not None:
            refused[change.session_id] = error
        return error

    def _apply_one(self, change: Change) -> StoreError | None:
        self._tails.pop(change.session_id, None)
        if isinstance(change, Create):
            return self._create(change.session)
        if isinstance(change, Rewind):
            self._rewind(change)
        elif isinstance(change, Delete):
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
                self._tails.clear()
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
        key = inserted.lastrowid
        assert key is not None
        self._many(_ADD_TOKENS, self._segments(session.session_id, key, 0, session.tokens))
        name = session.session_id
        self._many(_ADD_SNAPSHOTS, [_snapshot_row(key, name, snapshot) for snapshot in session.snapshots])
        self._many(_ADD_CALLS, [_call_row(key, name, call) for call in session.calls.values()])
        return None

    def _advance(self, changes: Sequence[Advance], refused: dict[str, StoreError]) -> list[StoreError | None]:
        """Have many sessions go on at once, each by one change or by several that follow each other."""
        steps: dict[str, list[Advance]] = {}
        for change in changes:
            if change.session_id not in refused:
                known = steps.setdefault(change.session_id, [])
                if known and change.start != known[-1].end:
                    refused[change.session_id] = self._conflict(change)
                else:
                    known.append(change)
        keys = self._move([(known[0], known[-1]) for known in steps.values()])
        for name, known in steps.items():
            if name not in keys:
                refused[name] = self._conflict(known[0])
        kept = {id(change): keys[name] for name, known in steps.items() if name in keys for change in known}
        self._add([(kept[id(change)], change) for change in changes if id(change) in kept])
        return [None if id(change) in kept else refused[change.session_id] for change in changes]

    def _move(self, spans: Sequence[tuple[Advance, Advance]]) -> dict[str, int]:
        """Set the positions of sessions, each from its first to its last change; the keys of those that were there."""
        rows = [(first.session_id, first.start, last.end, last.used) for first, last in spans]
        return dict(row for found in self._many(_MOVE, rows) for row in found)

    def _add(self, kept: Sequence[tuple[int, Advance]]) -> None:
        """Write down what changes bring, by the keys of their sessions."""
        segments = [
            row for key, change in kept for row in self._segments(change.session_id, key, change.start, change.tokens)
        ]
        dropped = [(key, position) for key, change in kept for position in change.dropped]
        snapshots = [
            _snapshot_row(key, change.session_id, change.snapshot)
            for key, change in kept
            if change.snapshot is not None
        ]
        calls = {
            (key, change.call.request_id): _call_row(key, change.session_id, change.call)
            for key, change in kept
            if change.call is not None
        }
        self._many(_ADD_TOKENS, segments)
        self._many(_DROP_SNAPSHOTS, dropped)
        self._many(_ADD_SNAPSHOTS, snapshots)
        self._many(_ADD_CALLS, list(calls.values()))
        self._many(_FORGET_CALLS, [(key,) for key in {key for key, _ in calls}])

    def _many(self, statement: str, rows: Sequence[tuple[object, ...]]) -> list[list[Any]]:
        """Run a statement on many rows; what it returns."""
        found = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            row = f"({', '.join('?' * len(part[0]))})"
            values = list(chain.from_iterable(part))
            whole = statement.format(rows=", ".join([row] * len(part)))
            found.append(self._connection.execute(whole, values).fetchall())
        return found

    def _conflict(self, change: Advance) -> StoreError:
        return StoreConflictError(f"{self._path}: session {change.session_id!r} is not at position {change.start}")

    def _segments(self, session_id: str, key: int, start: int, tokens: array[int]) -> list[tuple[object, ...]]:
        """What tokens add to segments: the part of each, and the checksum of all of it."""
        rows: list[tuple[object, ...]] = []
        done = 0
        while done < len(tokens):
            number, within = divmod(start + done, _SEGMENT)
            part = tokens[done : done + _SEGMENT - within].tobytes()
            before = self._tail(session_id, key, start + done) if within else _place(session_id, number)
            checksum = crc32(part, before)
            rows.append((key, number, part, checksum))
            done += len(part) // TOKEN_BYTES
            self._know_tail(session_id, start + done, checksum)
        return rows

    def _tail(self, session_id: str, key: int, position: int) -> int:
        """The checksum of the segment in the middle of which a position lies, as far as it is written."""
        known = self._tails.get(session_id)
        if known is not None and known[0] == position:
            return known[1]
        # Not worked out anew: of a segment that is damaged it would then be right.
        query = "SELECT checksum FROM segments WHERE key = ? AND number = ?"
        row = self._connection.execute(query, (key, position // _SEGMENT)).fetchone()
        return int(row[0]) if row else _place(session_id, position // _SEGMENT)

    def _know_tail(self, session_id: str, position: int, checksum: int) -> None:
        self._tails[session_id] = (position, checksum)
        self._tails.move_to_end(session_id)
        if len(self._tails) > _KNOWN_TAILS:
            self._tails.popitem(last=False)

    def _rewind(self, change: Rewind) -> None:
        run, session_id = self._connection.execute, change.session_id
        number, within = divmod(change.position, _SEGMENT)
        kept = run(f"SELECT tokens FROM segments WHERE key = {_KEY} AND number = ?", (session_id, number)).fetchone()
        run(f"DELETE FROM segments WHERE key = {_KEY} AND number >= ?", (session_id, number))
        if kept and within:
            part = kept[0][: within * TOKEN_BYTES]
            run(
                f"INSERT INTO segments VALUES ({_KEY}, ?, ?, ?)",
                (session_id, number, part, crc32(part, _place(session_id, number))),
            )
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
            try:
                held = self._read(session_id)
            except (TypeError, ValueError, OverflowError) as error:
                raise SessionDamagedError(str(self._path), session_id) from error
        if held is None:
            return None
        session, position, sound = held
        if not sound:
            _log.error("session damaged", session=session_id, position=position, recovered=session.position)
            # What follows is added to rows that are sound.
            self.apply([Rewind(session_id, session.position, session.position)])
        return session

    def _read(self, session_id: str) -> tuple[Session, int, bool] | None:
        """A session as far as it is sound, where its row says that it ends, and whether its tokens do.

        Raises:
            ValueError, TypeError, OverflowError: its row is damaged.
        """
        run = self._connection.execute
        row = run("SELECT * FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        if row is None:
            return None
        key, *fixed, used, position, checksum = row
        session = Session(*row[1:8])
        if _checksum(*fixed) != checksum or not isinstance(used, float) or not isinstance(position, int):
            raise ValueError("the checksum does not match")
        segments = run("SELECT number, tokens, checksum FROM segments WHERE key = ? ORDER BY number", (key,)).fetchall()
        session.tokens = _sound_tokens(session_id, segments)
        sound = len(session.tokens) == position
        del session.tokens[position:]
        for at, state, checksum in run(
            "SELECT position, state, checksum FROM snapshots WHERE key = ? ORDER BY position", (key,)
        ):
            if isinstance(state, bytes) and crc32(state, _place(session_id, at)) == checksum and at <= session.position:
                session.snapshots.append(Snapshot(at, state))
        for _, _, *values, checksum in run("SELECT * FROM calls WHERE key = ? ORDER BY number", (key,)):
            if _checksum(session_id, *values) == checksum and (call := Call(*values)).end <= session.position:
                session.calls[call.request_id] = call
        return session, position, sound

    def page(self, after: str, count: int) -> list[Summary]:
        with self._lock, _named_errors(self._path):
            rows = self._connection.execute(
                f"SELECT {_SUMMARY} FROM sessions WHERE session_id > ? AND {_SOUND} ORDER BY session_id LIMIT ?",
                (after, count),
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


def _place(session_id: str, number: int) -> int:
    """What the checksum of a row's content begins with: of which session it is, and where in it."""
    return crc32(f"{session_id} {number}".encode())


def _snapshot_row(key: int, session_id: str, snapshot: Snapshot) -> tuple[object, ...]:
    checksum = crc32(snapshot.state, _place(session_id, snapshot.position))
    return (key, snapshot.position, snapshot.state, checksum)


def _call_row(key: int, session_id: str, call: Call) -> tuple[object, ...]:
    values = (
        call.request_id,
        call.fingerprint,
        call.start,
        call.prompt_count,
        call.generated_count,
        call.outcome,
        call.answer,
    )
    return (None, key, *values, _checksum(session_id, *values))


def _checksum(*values: object) -> int:
    return crc32(repr(values).encode())


def _sound_tokens(session_id: str, segments: Sequence[tuple[int, bytes, int]]) -> array[int]:
    """The tokens before the first segment that is missing, short or damaged."""
    tokens = array(TOKEN_TYPE)
    for number, part, checksum in segments:
        if (
            not isinstance(part, bytes)
            or len(tokens) != number * _SEGMENT
            or crc32(part, _place(session_id, number)) != checksum
            or len(part) % TOKEN_BYTES
        ):
            break
        tokens.frombytes(part)
    return tokens


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StoreFullError(f"{path}: there is no space left for sessions") from error
        raise StoreUnavailableError(f"{path}: the store of sessions has failed: {error}") from error
