"""Threads: how many there are cores for, several things at once, each on a thread of its own, and the cores that
threads of a run stay on.

A run's other threads sleep between runs. Where the system wakes one on the core of the thread that waits for it, the
two take turns there for some milliseconds, while another core is idle: a run takes up to twice as long then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


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


def core_count(root: Path = _ROOT) -> int:
    """How many cores this process may use at once: those that it may run on, as far as a container does not allow it
    less of their time. More threads than that stop each other.

    Args:
        root: of the file system, which tells what a control group allows (cgroups(7), both versions).
    """
    # Not every system can tell which cores the process may use.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([count, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Of how many cores the time is allowed, by every control group that the process is in and that sets a limit."""
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mounted = root / "sys/fs/cgroup"
            if "cpu" in controllers.split(","):
                mounted /= "cpu"
            elif controllers:
                continue
            # In a container the path may be the one that the host sees, of which nothing is there but its end.
            place = mounted / path.lstrip("/")
            for folder in (place, *place.parents):
                if folder.is_relative_to(mounted):
                    yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """What one control group allows, if it sets a limit."""
    with contextlib.suppress(OSError, ValueError):
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if float(quota) > 0:  # "max" is no number, and -1 is none.
            yield float(quota) / float(period)


@dataclass(frozen=True)
class Cores:
    """The cores that the threads of a model's runs stay on, one each.

    Attributes:
        numbers: the system's, that of the thread first that has something run; none where the system is to choose.
    """

    numbers: tuple[int, ...] = ()

    @classmethod
    def all(cls, threads: int, start: int) -> Cores:
        """Every core that this process may use, if there is one for each of so many threads and no more. Else some
        might idle while two models wait for the same.

        Args:
            threads: how many.
            start: which of them comes first. Much of a run is on that core alone: another one for every model.
        """
        numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(numbers) != threads or threads == 1:
            return cls()
        start %= threads
        return cls((*numbers[start:], *numbers[:start]))

    @property
    def of_others(self) -> str:
        """Those of a run's other threads, as onnxruntime wants to be told."""
        return ";".join(str(number + 1) for number in self.numbers[1:])

    @contextlib.contextmanager
    def settled(self, thread: int) -> Iterator[None]:
        """Keep the calling thread, one of those of a run, on its core. What threads it starts meanwhile stay there,
        too."""
        if not self.numbers:
            yield
            return
        before = os.sched_getaffinity(0)
        _allow({self.numbers[thread % len(self.numbers)]})
        try:
            yield
        finally:
            _allow(before)


def _allow(numbers: set[int]) -> None:
    with contextlib.suppress(OSError):  # A core may have been taken away.
        os.sched_setaffinity(0, numbers)
