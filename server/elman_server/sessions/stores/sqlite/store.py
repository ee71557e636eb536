"""The store in one SQLite file."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from elman_server.errors import SessionDamagedError, StoreError, StoreFullError
from elman_server.sessions.changes import Change, Delete, Rewind
from elman_server.sessions.session import Session
from elman_server.sessions.stores.interface import SoleOwner, Summary
from elman_server.sessions.stores.sqlite import schema
from elman_server.sessions.stores.sqlite.database import Database
from elman_server.sessions.stores.sqlite.reader import read_session
from elman_server.sessions.stores.sqlite.reserve import Reserve
from elman_server.sessions.stores.sqlite.writer import ChangeWriter
from elman_server.settings import Fsync

_log = structlog.get_logger(__name__)


class SqliteStore(SoleOwner):
    """Keeps sessions in a file that one server at a time has open; implements `Store`.

    Args:
        path: the file; created if it does not exist.
        fsync: when commits are forced to the disk.
        limit: bytes that the file may have; None for no limit.

    Raises:
        StoreOpenError: see `Database`.
    """

    blocks = True

    def __init__(self, path: Path, fsync: Fsync = Fsync.CHECKPOINT, limit: int | None = None) -> None:
        self._lock = threading.Lock()
        self._database = Database(path, fsync, limit)
        self._reserve = Reserve(path)
        self._writer = ChangeWriter(self._database)

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        with self._lock:
            try:
                return self._write(changes)
            except StoreFullError as error:
                deletions = [change for change in changes if isinstance(change, Delete)]
                if not deletions:
                    raise
                # What makes room is done in the room that is kept for it.
                with self._reserve.given_up():
                    done = iter(self._write(deletions))
                    with contextlib.suppress(StoreError):  # They are written.
                        self._database.shrink_log()
                return [next(done) if isinstance(change, Delete) else error for change in changes]

    def _write(self, changes: Sequence[Change]) -> list[StoreError | None]:
        try:
            with self._database.transaction():
                return self._writer.write(changes)
        except BaseException:
            self._writer.reset()
            raise

    def load(self, session_id: str) -> Session | None:
        with self._lock, self._database.translated_errors():
            try:
                stored = read_session(self._database, session_id)
            except (TypeError, ValueError, OverflowError) as error:
                raise SessionDamagedError(session_id) from error
        if stored is None:
            return None
        session = stored.session
        if not stored.is_complete:
            _log.error(
                "session damaged", session_id=session_id, position=stored.position, recovered_position=session.position
            )
            # Cut off in the store too, so that new tokens are appended to undamaged ones.
            self.apply([Rewind(session_id, session.position, session.position)])
        return session

    def page(self, after: str, count: int) -> list[Summary]:
        return [Summary(*row) for row in self._query(schema.PAGE, after, count)]

    def expired(self, before: float) -> list[str]:
        return [session_id for (session_id,) in self._query(schema.EXPIRED, before)]

    def count(self, caller: str) -> int:
        ((count,),) = self._query(schema.COUNT, caller)
        return int(count)

    def _query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._lock, self._database.translated_errors():
            return self._database.execute(statement, *parameters).fetchall()

    def check(self) -> None:
        with self._lock:
            for statement in (schema.TAKE_SPACE, schema.RETURN_SPACE):
                with self._database.transaction():
                    self._database.execute(statement)

    def close(self) -> None:
        with self._lock:
            self._database.close()
            self._reserve.close()
