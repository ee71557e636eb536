"""Keeping rows compact: the last one in use fills each hole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol

import structlog

_log = structlog.get_logger(__name__)


class RowStore(Protocol):
    """Anything that keeps something for each row in use."""

    def release(self, row: int) -> None:
        """Forget what is kept for a row; harmless where nothing is."""
        ...

    def move(self, source: int, destination: int) -> None:
        """Give the place of a released row to the last row in use."""
        ...


def holes(leaving: Collection[int], count: int) -> Iterator[tuple[int, int]]:
    """Yield each leaving row with the last row in use, which takes its place.

    Args:
        leaving: the rows that are released, out of `range(count)`.
        count: the number of rows in use.

    Yields:
        (row, last): the highest row first, so that `last` is never one that is about to leave. Equal where the row is
        the last one itself.
    """
    for row in sorted(leaving, reverse=True):
        count -= 1
        yield row, count


def compact(leaving: Collection[int], count: int, table: RowStore, stores: Iterable[RowStore]) -> set[int]:
    """Release rows in every store, so that the rest are `range(count - len(leaving))` again.

    Args:
        leaving: the rows.
        count: the number of rows in use.
        table: the store that says which row is whose. Where it fails, nothing is known of any row.
        stores: the others.

    Returns:
        The rows in use whose content a store could not move.
    """
    damaged: set[int] = set()
    for row, last in holes(leaving, count):
        moved = last != row
        if last in damaged:
            damaged.remove(last)
            damaged.add(row)
        for store in stores:  # Each of them, also after a failure: all agree on which row is which.
            released = _succeeds(store.release, row)
            if moved and not (_succeeds(store.move, last, row) and released):
                damaged.add(row)
        table.release(row)
        if moved:
            table.move(last, row)
    return damaged


def _succeeds(change: Callable[..., None], *rows: int) -> bool:
    try:
        change(*rows)
    except Exception:
        _log.exception("row not moved", rows=rows)
        return False
    return True
