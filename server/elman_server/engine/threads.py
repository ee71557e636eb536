"""The threads of a run, and the cores they stay on.

A run's other threads sleep between runs. Where the system wakes one on the core of the thread that waits for it, the
two share that core for some milliseconds while another one is idle, and the run takes up to twice as long.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass

from loky import cpu_count


def run_concurrently(executor: Executor, tasks: Sequence[Callable[[], None]]) -> None:
    """Run all tasks at the same time, the first of them on the calling thread; returns when all are done.

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


def core_count() -> int:
    """Returns how many cores this process may use: by its affinity, and by the quota of its control group."""
    return int(cpu_count())


@dataclass(frozen=True)
class Cores:
    """The cores that the threads of a model's runs stay on, one each.

    Attributes:
        numbers: the system's numbers, that of the calling thread first; none where the system chooses.
    """

    numbers: tuple[int, ...] = ()

    @classmethod
    def all(cls, threads: int, start: int) -> Cores:
        """Every core that this process may use, if there are as many as threads. Otherwise some might idle while two
        models wait for the same one.

        Args:
            threads: the number of threads.
            start: which of the cores comes first. Much of a run is on that core alone, so each model has another one.
        """
        numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(numbers) != threads or threads == 1:
            return cls()
        start %= threads
        return cls((*numbers[start:], *numbers[:start]))

    @property
    def thread_affinities(self) -> str:
        """The cores of a run's other threads, in the form of onnxruntime's option intra_op_thread_affinities."""
        return ";".join(str(number + 1) for number in self.numbers[1:])

    @contextlib.contextmanager
    def pinned(self, thread: int) -> Iterator[None]:
        """Keep the calling thread, the number `thread` of a run, on its core. Threads that it starts meanwhile stay
        there, too."""
        if not self.numbers:
            yield
            return
        before = os.sched_getaffinity(0)
        _set_affinity({self.numbers[thread % len(self.numbers)]})
        try:
            yield
        finally:
            _set_affinity(before)


def _set_affinity(numbers: set[int]) -> None:
    with contextlib.suppress(OSError):  # A core may have been taken offline.
        os.sched_setaffinity(0, numbers)
