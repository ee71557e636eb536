"""One thread that works for callers in turn, so that no caller waits for all the work of another one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_NICENESS = 10  # what runs here is not to slow down the model


class FairExecutor:
    """Runs functions on a thread of low priority.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=lower_priority)
        self._lock = threading.Lock()
        self._queues: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}  # the caller whose turn it is first

    def submit(self, caller: str, function: Callable[[], _Result]) -> Future[_Result]:
        """Have a function run when it is the caller's turn, after the earlier ones of the same caller."""
        future: Future[_Result] = Future()
        with self._lock:
            self._queues.setdefault(caller, deque()).append((future, function))
        self._thread.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        with self._lock:
            caller, queue = next(iter(self._queues.items()))
            future, function = queue.popleft()
            del self._queues[caller]
            if queue:
                self._queues[caller] = queue
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)


def lower_priority() -> None:
    """Let other threads go first, where the system knows the priority of a thread."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
