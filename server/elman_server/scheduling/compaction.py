"""Keeping rows compact: the last one in use fills each hole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Protocol


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


def compact(leaving: Collection[int], count: int, stores: Iterable[RowStore]) -> None:
    """Release rows in every store, so that the rest are `range(count - len(leaving))` again."""
    for row, last in holes(leaving, count):
        for store in stores:
            store.release(row)
            if last != row:
                store.move(last, row)
