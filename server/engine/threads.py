"""Several things at once, each on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait


def side_by_side(executor: Executor, tasks: Sequence[Callable[[], None]]) -> None:
    """Do all tasks at once, the first of them on the calling thread; returns when all are over.

    Raises:
        Exception: what one of them has raised.
    """
    others = [executor.submit(task) for task in tasks[1:]]
    try:
        tasks[0]()
    finally:
        wait(others)
    for other in others:
        other.result()
