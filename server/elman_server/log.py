"""The log of a server process: one line an event on standard error, without anything that users sent."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import structlog

from elman_server.settings import LogFormat, Settings

_FRAMES, _CAUSES = 12, 4  # of an exception that are logged
_REPETITIONS, _REPETITION_SECONDS = 5, 10.0  # how often a defect is logged in which time
_MOST_DEFECTS = 1000  # that are counted
_MOST_LINES = 10_000  # that wait for a reader of the log
_FLUSH_SECONDS = 1.0  # for which the end of a process waits for that reader

_log = structlog.get_logger("elman")


@contextlib.contextmanager
def log_of_process(settings: Settings) -> Iterator[LineWriter]:
    """Send log events to standard error, in the format of the settings, and write the last of them at the end."""
    writer = LineWriter(sys.stderr)
    as_json = settings.log_format is LogFormat.JSON
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S"),
            _format_exception,
            RepetitionLimit(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if settings.verbose else logging.INFO),
        logger_factory=lambda *_: writer,
    )
    try:
        yield writer
    finally:
        writer.flush()


class LineWriter:
    """Writes lines to a file on a thread of its own, so that a log that nobody reads holds up nobody who logs; what is
    too much for it is left out and counted. Thread-safe.

    Args:
        file: a text file; its errors are ignored.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._left_out = 0  # lines since the last report of them
        threading.Thread(target=self._write, name="elman-log", daemon=True).start()

    def msg(self, line: str) -> None:
        """Write a line soon."""
        if self._lines.qsize() < _MOST_LINES:
            self._lines.put(line)
        else:
            with self._lock:
                self._left_out += 1

    # The levels at which structlog logs.
    debug = info = warning = error = critical = msg

    def flush(self) -> None:
        """Wait until what was logged is written, for a second at most."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(_FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
            else:
                with contextlib.suppress(OSError, ValueError):
                    print(line, file=self._file, flush=True)
            if self._left_out and self._lines.empty():
                with self._lock:
                    count, self._left_out = self._left_out, 0
                _log.warning("lines left out", count=count, why="standard error was not read")


def _format_exception(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Say which exception was raised where. Neither its message nor local variables: both may hold what users sent."""
    found = event.pop("exc_info", None)
    error = found if isinstance(found, BaseException) else sys.exc_info()[1] if found else None
    if error is not None:
        event["exception"] = " because of ".join(_described(one) for one in islice(_chain(error), _CAUSES))
    return event


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _described(error: BaseException) -> str:
    # Without the lines of source: reading files would hold up the event loop.
    frames = deque(traceback.walk_tb(error.__traceback__), maxlen=_FRAMES)
    places = [f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}" for frame, line in frames]
    return f"{type(error).__name__} ({' > '.join(places)})"


class RepetitionLimit:
    """A processor that drops lines about a defect that was logged a few times just now. Thread-safe.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[object, tuple[float, int]] = {}  # since when a defect is counted, and how often it was met

    def __call__(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if "exception" not in event:
            return event
        defect, now = (event.get("event"), event["exception"]), self._clock()
        with self._lock:
            if len(self._seen) > _MOST_DEFECTS:
                self._seen.clear()
            began, count = self._seen.get(defect, (now, 0))
            if now - began >= _REPETITION_SECONDS:
                if count > _REPETITIONS:
                    event["left_out_count"] = count - _REPETITIONS
                began, count = now, 0
            self._seen[defect] = began, count + 1
        if count >= _REPETITIONS:
            raise structlog.DropEvent
        return event
