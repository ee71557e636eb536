"""The file of the SQLite store: opened by one server at a time, with a write-ahead log."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import structlog

from elman_server.errors import StoreFullError, StoreOpenError, StoreUnavailableError, listed
from elman_server.sessions.stores.interface import STORE_FAILED
from elman_server.sessions.stores.sqlite.schema import FORMAT, TABLE_NAMES, TABLES
from elman_server.settings import Fsync

_BUSY_SECONDS = 5.0  # to wait for the lock of another server
_MODE = 0o600  # of a new file
_IN_USE, _CLOSED = 0x656C6D6F, 0x656C6D6E  # in `PRAGMA application_id`: whether a log belongs to the file
_MAX_ROWS = 500  # per statement
_CACHED_STATEMENTS = 64
_SYNCHRONOUS = {Fsync.ALWAYS: "FULL", Fsync.CHECKPOINT: "NORMAL", Fsync.NEVER: "OFF"}

_log = structlog.get_logger(__name__)


class Database:
    """A connection to the file. Not thread-safe.

    Args:
        path: the file; created if it does not exist.
        fsync: when commits are forced to the disk.
        limit: bytes that it may have; None for no limit.

    Attributes:
        path: the file.
        connection: the connection.

    Raises:
        StoreOpenError: it cannot be created or read, is something else, or another server has it open.
    """

    def __init__(self, path: Path, fsync: Fsync, limit: int | None = None) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, _MODE))  # sqlite3 would let all users read it.
            has_log = path.with_name(f"{path.name}-wal").exists()
            self.connection = sqlite3.connect(
                path,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=_CACHED_STATEMENTS,
            )
            try:
                self._prepare(fsync, has_log=has_log)
                if limit is not None:
                    self._limit(limit)
            except BaseException:
                self.connection.close()
                raise
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                rule, remedy = "another server has it open", "Stop that server, or choose another file"
                raise StoreOpenError(f"store: got {path}; {rule}. {remedy}") from error
            raise StoreOpenError(f"store: got {path}; it cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            rule, remedy = f"it is not a store of sessions, or is damaged: {error}", "Restore it from a backup"
            raise StoreOpenError(f"store: got {path}; {rule}. {remedy}") from error
        except OSError as error:
            raise StoreOpenError(f"store: got {path}; it cannot be opened: {error.strerror}") from error

    def _prepare(self, fsync: Fsync, *, has_log: bool) -> None:
        run = self.connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        # Before anything is changed: it may be another program's file.
        (version,) = run("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT):
            rule = f"it has format {version}, and this server reads format {FORMAT}"
            raise StoreOpenError(f"store: got {self.path}; {rule}. Use the version of elman that wrote it")
        if run("PRAGMA application_id").fetchone() == (_IN_USE,) and not has_log:
            log = f"{self.path}-wal"
            rule = f"a server had it open, and the log that belongs to it is missing: {log}"
            remedy = f"Copy that as well, or copy the file when its server has ended. To go without, run: touch {log}"
            raise StoreOpenError(f"store: got {self.path}; {rule}. {remedy}")
        found = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if found and not found.issuperset(TABLE_NAMES):
            rule = f"it is the database of another program, with the tables {listed(sorted(found))}"
            raise StoreOpenError(f"store: got {self.path}; {rule}. Choose another file")
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {_SYNCHRONOUS[fsync]}")
        run("BEGIN IMMEDIATE")  # In exclusive mode, no other process can open the file after this.
        for statement in TABLES.split(";"):
            run(statement)
        run(f"PRAGMA user_version = {FORMAT}")
        run(f"PRAGMA application_id = {_IN_USE}")
        run("COMMIT")
        with contextlib.suppress(sqlite3.OperationalError):  # There may be no room.
            run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # So that the file itself says that it is in use.

    def _limit(self, limit: int) -> None:
        (page_bytes,) = self.connection.execute("PRAGMA page_size").fetchone()
        # No fewer than the file has already.
        self.connection.execute(f"PRAGMA max_page_count = {max(1, limit // page_bytes)}")

    def shrink_log(self) -> None:
        """Bring the content of the write-ahead log into the file, and the log to no length.

        Raises:
            StoreError: see `translated_errors`.
        """
        with self.translated_errors():
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        """Run a statement."""
        return self.connection.execute(statement, parameters)

    def execute_rows(self, statement: str, rows: Sequence[tuple[object, ...]]) -> list[Any]:
        """Run a statement with {rows} in place of rows, in batches; return the rows that it returns."""
        found: list[Any] = []
        for start in range(0, len(rows), _MAX_ROWS):
            batch = rows[start : start + _MAX_ROWS]
            row = f"({', '.join('?' * len(batch[0]))})"
            values = list(chain.from_iterable(batch))
            found += self.connection.execute(statement.format(rows=", ".join([row] * len(batch))), values).fetchall()
        return found

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what happens in the block; roll it back if it fails.

        Raises:
            StoreError: see `translated_errors`.
        """
        with self.translated_errors():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turn errors of SQLite into domain errors.

        Raises:
            StoreFullError: there is no space left.
            StoreUnavailableError: any other error.
        """
        try:
            yield
        except sqlite3.Error as error:
            _log.error("store failed", store=str(self.path), error=str(error))
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StoreFullError("Delete sessions, raise --store-limit, or make room on the disk") from error
            raise StoreUnavailableError(STORE_FAILED) from error

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.execute(f"PRAGMA application_id = {_CLOSED}")
        self.connection.close()
