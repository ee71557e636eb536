"""A server process: its log, its signals, and its life from loading the bundles to the end of the drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import structlog

from elman_bundle import Bundle
from elman_server.application import Server
from elman_server.configuration import message_rate, thread_count
from elman_server.event_loop import ServerEventLoop
from elman_server.inference.model import ServedModel
from elman_server.loading import find_bundles, serve_bundle
from elman_server.returned_memory import return_memory
from elman_server.settings import LogFormat, Settings, misspelled_variables, shown_value

_DUPLICATE_SECONDS = 1.0  # within which a second signal is the same request again
_SWITCH_SECONDS = 0.0001  # for which a thread may keep the interpreter when another waits for it
_ALLOCATIONS = 20_000  # objects between two garbage collections
_FORCED_EXIT = 130  # the exit status
_FRAMES, _CAUSES = 12, 4  # of an exception that are logged
_REPETITIONS, _REPETITION_SECONDS = 5, 10.0  # how often a defect is logged in which time
_MOST_DEFECTS = 1000  # that are counted

_log = structlog.get_logger("elman")


def run(settings: Settings) -> None:
    """Serve the bundles of the settings until SIGTERM or SIGINT, then let running calls finish.

    Raises:
        BundleError: a bundle cannot be loaded.
        ModelLoadError: a bundle cannot be served here.
        StartError: the address or the store of sessions cannot be opened.
    """
    configure_log(settings)
    for name, meant in misspelled_variables().items():
        _log.warning("unknown variable", variable=name, did_you_mean=meant)
    bundles = find_bundles(settings.bundles)
    with asyncio.Runner(loop_factory=ServerEventLoop) as runner:
        runner.run(_serve(bundles, settings))


async def _serve(bundles: list[Bundle], settings: Settings) -> None:
    with stop_signal() as stopping:
        loading = asyncio.create_task(_load(bundles, settings))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait((loading, stop), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            # Nothing has been served, and a model that is being loaded cannot be interrupted.
            _log.info("stopped", while_loading=True)
            os._exit(0)
        stop.cancel()
        models = loading.result()
        tune_interpreter()
        server = Server(settings, models)
        await server.start()
        _log.info(
            "listening",
            address=settings.shown_address(server.port),
            slots=settings.slots,
            threads=thread_count(settings),
            messages_per_second=message_rate(settings),
            sessions=shown_value(settings, "store"),
            waiting="spinning in a run, asleep between runs",
        )
        returning = asyncio.create_task(return_memory())
        await stopping.wait()
        returning.cancel()
        await server.drain()
    _log.info("stopped")


async def _load(bundles: list[Bundle], settings: Settings) -> list[ServedModel]:
    """Load models one after the other."""
    loop, models = ServerEventLoop.running(), []
    for number, bundle in enumerate(bundles):
        model = await asyncio.to_thread(serve_bundle, bundle, settings, loop, number)
        ability = "generates" if model.generates else "labels"
        _log.info("model ready", model=model.name, does=ability, provider=model.provider, digest=bundle.digest[:19])
        models.append(model)
    return models


@contextlib.contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM, SIGINT or SIGHUP sets. A later signal ends the process immediately."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    first = 0.0

    def receive() -> None:
        nonlocal first
        if not stopping.is_set():
            first = loop.time()
            stopping.set()
        # Ctrl-C often arrives twice: from the terminal, and from the process that started this one.
        elif loop.time() - first > _DUPLICATE_SECONDS:
            _log.warning("forced exit", signal_count=2)
            os._exit(_FORCED_EXIT)

    for number in numbers:
        loop.add_signal_handler(number, receive)
    try:
        yield stopping
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def tune_interpreter() -> None:
    """Set the interpreter for threads that each need it often and briefly: a scheduler whose model has run must not
    wait long for the event loop. Call it after the models are loaded."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # The loaded models stay; no collection needs to visit them again.
    gc.set_threshold(_ALLOCATIONS)


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


def configure_log(settings: Settings) -> None:
    """Send log events to standard error, in the format of the settings."""
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
