"""The store in one SQLite file."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from elman_server.errors import SessionDamagedError, StoreError
from elman_server.sessions.changes import Change, Rewind
from elman_server.sessions.session import Session
from elman_server.sessions.stores.interface import SoleOwner, Summary
from elman_server.sessions.stores.sqlite import schema
from elman_server.sessions.stores.sqlite.database import Database
from elman_server.sessions.stores.sqlite.reader import read_session
from elman_server.sessions.stores.sqlite.writer import ChangeWriter
from elman_server.settings import Fsync

_log = structlog.get_logger(__name__)


class SqliteStore(SoleOwner):
    """Keeps sessions in a file that one server at a time has open; implements `Store`.

    Args:
        path: the file; created if it does not exist.
        fsync: when commits are forced to the disk.

    Raises:
        StoreOpenError: see `Database`.
    """

    blocks = True

    def __init__(self, path: Path, fsync: Fsync = Fsync.CHECKPOINT) -> None:
        self._lock = threading.Lock()
        self._database = Database(path, fsync)
        self._writer = ChangeWriter(self._database)

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        with self._lock:
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
                raise SessionDamagedError(str(self._database.path), session_id) from error
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

    def close(self) -> None:
        with self._lock:
            self._database.close()
