"""`elman serve` with a store that lies: it says that changes are kept which it has only put aside for a while."""

from __future__ import annotations

from collections.abc import Sequence

from elman.cli.application import main
from elman_server.errors import StoreError
from elman_server.sessions.changes import Change
from elman_server.sessions.stores.sqlite import SqliteStore

_PUT_ASIDE = 50  # transactions

_waiting: list[Sequence[Change]] = []
_apply = SqliteStore.apply


def _lie(self: SqliteStore, changes: Sequence[Change]) -> list[StoreError | None]:
    _waiting.append(changes)
    if len(_waiting) > _PUT_ASIDE:
        _apply(self, _waiting.pop(0))
    return [None] * len(changes)


SqliteStore.apply = _lie  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
