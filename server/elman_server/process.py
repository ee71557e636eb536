"""A server process: its signals, and its life from loading the bundles to the end of the drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator

import structlog

from elman_bundle import Bundle
from elman_server.application import Server
from elman_server.configuration import message_rate, thread_count
from elman_server.event_loop import ServerEventLoop
from elman_server.inference.model import ServedModel
from elman_server.loading import find_bundles, serve_bundle
from elman_server.log import LineWriter, log_of_process
from elman_server.returned_memory import return_memory
from elman_server.settings import Settings, misspelled_variables, shown_value

_DUPLICATE_SECONDS = 1.0  # within which a second signal is the same request again
_SWITCH_SECONDS = 0.0001  # for which a thread may keep the interpreter when another waits for it
_ALLOCATIONS = 20_000  # objects between two garbage collections
_FORCED_EXIT = 130  # the exit status

_log = structlog.get_logger("elman")


def run(settings: Settings) -> None:
    """Serve the bundles of the settings until SIGTERM or SIGINT, then let running calls finish.

    Raises:
        BundleError: a bundle cannot be loaded.
        ModelLoadError: a bundle cannot be served here.
        StartError: the address or the store of sessions cannot be opened.
    """
    with log_of_process(settings) as log:
        for name, meant in misspelled_variables().items():
            _log.warning("unknown variable", variable=name, did_you_mean=meant)
        bundles = find_bundles(settings.bundles)
        with asyncio.Runner(loop_factory=ServerEventLoop) as runner:
            runner.run(_serve(bundles, settings, log))


async def _serve(bundles: list[Bundle], settings: Settings, log: LineWriter) -> None:
    with stop_signal(log) as stopping:
        loading = asyncio.create_task(_load(bundles, settings))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait((loading, stop), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            # Nothing has been served, and a model that is being loaded cannot be interrupted.
            _log.info("stopped", while_loading=True)
            log.flush()
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
def stop_signal(log: LineWriter) -> Iterator[asyncio.Event]:
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
            log.flush()
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
