"""Writes changes into the tables of the SQLite store, inside a transaction of its caller."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from zlib import crc32

from elman_server.errors import StoreConflictError, StoreError
from elman_server.sessions.changes import Advance, Change, Create, Delete, Rewind
from elman_server.sessions.session import TOKEN_BYTES, Session
from elman_server.sessions.stores.sqlite import schema
from elman_server.sessions.stores.sqlite.database import Database
from elman_server.sessions.stores.sqlite.records import call_row, place_checksum, session_row, snapshot_row
from elman_server.sessions.stores.sqlite.segments import SegmentWriter


class ChangeWriter:
    """Writes changes. Not thread-safe.

    Args:
        database: the file.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._segments = SegmentWriter(database)

    def reset(self) -> None:
        """Drop what is cached of the tables; needed after a transaction that was rolled back."""
        self._segments.clear()

    def write(self, changes: Sequence[Change]) -> list[StoreError | None]:
        """Write changes, in order.

        Returns:
            For each change None, or why it is refused. What follows a refused change of a session is refused too.
        """
        refused: dict[str, StoreError] = {}  # by session id
        errors: list[StoreError | None] = []
        for are_advances, group in groupby(changes, lambda change: isinstance(change, Advance)):
            if are_advances:
                errors += self._advance([change for change in group if isinstance(change, Advance)], refused)
            else:
                errors += [self._write_one(change, refused) for change in group]
        return errors

    def _write_one(self, change: Change, refused: dict[str, StoreError]) -> StoreError | None:
        if change.session_id in refused:
            return refused[change.session_id]
        self._segments.forget(change.session_id)
        error = None
        if isinstance(change, Create):
            error = self._create(change.session)
        elif isinstance(change, Rewind):
            self._rewind(change)
        elif isinstance(change, Delete):
            self._delete(change)
        if error is not None:
            refused[change.session_id] = error
        return error

    def _create(self, session: Session) -> StoreError | None:
        inserted = self._database.execute(schema.ADD_SESSION, *session_row(session))
        if not inserted.rowcount:
            return StoreConflictError(session.session_id, "it exists already")
        key, name = inserted.lastrowid, session.session_id
        assert key is not None
        run = self._database.execute_rows
        run(schema.APPEND_TOKENS, self._segments.rows(name, key, 0, session.tokens[:]))
        run(schema.ADD_SNAPSHOTS, [snapshot_row(key, name, snapshot) for snapshot in session.snapshots])
        run(schema.ADD_CALLS, [call_row(key, name, call) for call in session.calls.values()])
        return None

    def _advance(self, changes: Sequence[Advance], refused: dict[str, StoreError]) -> list[StoreError | None]:
        """Advance many sessions together, each by one change or by consecutive ones."""
        runs: dict[str, list[Advance]] = {}  # by session id, consecutive changes
        for change in changes:
            if change.session_id not in refused:
                run = runs.setdefault(change.session_id, [])
                if run and change.start != run[-1].end:
                    refused[change.session_id] = self._conflict(change)
                else:
                    run.append(change)
        spans = [(name, run[0].start, run[-1].end, run[-1].used) for name, run in runs.items()]
        keys: dict[str, int] = dict(self._database.execute_rows(schema.ADVANCE_POSITIONS, spans))
        for name, run in runs.items():
            if name not in keys:
                refused[name] = self._conflict(run[0])
        kept = {id(change): keys[name] for name, run in runs.items() if name in keys for change in run}
        self._append([(kept[id(change)], change) for change in changes if id(change) in kept])
        return [None if id(change) in kept else refused[change.session_id] for change in changes]

    def _append(self, kept: Sequence[tuple[int, Advance]]) -> None:
        """Write what changes add, given with the keys of their sessions."""
        segments = [
            row
            for key, change in kept
            for row in self._segments.rows(change.session_id, key, change.start, change.tokens)
        ]
        dropped = [(key, position) for key, change in kept for position in change.dropped]
        snapshots = [
            snapshot_row(key, change.session_id, change.snapshot) for key, change in kept if change.snapshot is not None
        ]
        calls = {
            (key, change.call.request_id): call_row(key, change.session_id, change.call)
            for key, change in kept
            if change.call is not None
        }
        run = self._database.execute_rows
        run(schema.APPEND_TOKENS, segments)
        run(schema.DROP_SNAPSHOTS, dropped)
        run(schema.ADD_SNAPSHOTS, snapshots)
        run(schema.ADD_CALLS, list(calls.values()))
        run(schema.DROP_OLD_CALLS, [(key,) for key in {key for key, _ in calls}])

    @staticmethod
    def _conflict(change: Advance) -> StoreError:
        return StoreConflictError(change.session_id, f"it is not at position {change.start}")

    def _rewind(self, change: Rewind) -> None:
        run, name = self._database.execute, change.session_id
        number, within = divmod(change.position, schema.SEGMENT_TOKENS)
        last = run(schema.SEGMENT_TOKENS_AT, name, number).fetchone()
        run(schema.DROP_SEGMENTS_FROM, name, number)
        if last and within:
            part = last[0][: within * TOKEN_BYTES]
            run(schema.ADD_SEGMENT, name, number, part, crc32(part, place_checksum(name, number)))
        run(schema.DROP_SNAPSHOTS_AFTER, name, change.state_position)
        run(schema.DROP_CALLS_AFTER, name, change.position)
        run(schema.SET_POSITION, change.position, name)

    def _delete(self, change: Delete) -> None:
        for table in schema.TABLE_NAMES:
            self._database.execute(schema.DELETE_FROM.format(table=table), change.session_id)
