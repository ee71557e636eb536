"""`elman serve`."""

from __future__ import annotations

import asyncio
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elman.connection import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from elman_bundle import Bundle
    from elman_server.application import ServerOptions


_OF_A_RUN = "config.json"  # training.checkpoint says so, which only those can ask who have torch


class ProviderName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class FsyncName(StrEnum):
    always = "always"
    checkpoint = "checkpoint"
    never = "never"


class LogFormat(StrEnum):
    console = "console"
    json = "json"


def serve(
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundles, or folders of bundles, to serve.", show_default=False)
    ],
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 takes any free one.")] = DEFAULT_ADDRESS,
    provider: Annotated[
        ProviderName,
        typer.Option(help="auto: CUDA where it loads, else the CPU. cuda: CUDA, or the server does not start."),
    ] = ProviderName.auto,
    threads: Annotated[int, typer.Option(help="Threads of a step on the CPU; 0: one a core it may use.", min=0)] = 0,
    slots: Annotated[int, typer.Option(help="Sequences of one model that run at once.", min=1)] = 128,
    waiting_limit: Annotated[
        int,
        typer.Option(
            help="Sequences of one model that may wait; one more is refused. Streams of pieces that "
            "were taken may wait beyond it: at most this and --slots of them are open.",
            min=0,
        ),
    ] = 1024,
    chunk_ms: Annotated[
        float,
        typer.Option(
            help="Milliseconds that one run of a model may take. It takes several steps at once, as many as fit; a "
            "request that arrives waits for one run at most.",
            min=0.1,
        ),
    ] = 5.0,
    gather_ms: Annotated[
        float,
        typer.Option(
            help="Milliseconds for which the tokens of a stream gather to one message, the first token excepted; a "
            "request may ask for something else.",
            min=0,
        ),
    ] = 40.0,
    message_rate: Annotated[
        float,
        typer.Option(
            help="Messages a second that all streams of one model together are sent, about: with many streams tokens "
            "gather for longer than --gather-ms. 0: 500 for every core, or fewer where they would take more than a "
            "fortieth of the time, as long as there is one every 160 ms.",
            min=0,
        ),
    ] = 0.0,
    max_tokens_limit: Annotated[int, typer.Option(help="The largest max_tokens of a request.", min=1)] = 65_536,
    input_limit: Annotated[
        int, typer.Option(help="The largest number of tokens of a prompt, input or piece.", min=1)
    ] = 65_536,
    message_limit: Annotated[
        int, typer.Option(help="The largest number of bytes of a message.", min=1, max=2**28)
    ] = 4_194_304,
    write_timeout: Annotated[
        float, typer.Option(help="Seconds a client may leave a message unread before its stream is ended.", min=0.1)
    ] = 60.0,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that running calls have to finish after SIGTERM.", min=0)
    ] = 30.0,
    store: Annotated[
        str,
        typer.Option(
            help="Where sessions are kept. memory: they end with the server. PATH: a SQLite file, made if it is not "
            "there; they survive whatever happens to the server. redis://HOST:PORT/DB (rediss:// for TLS, unix:// for "
            "a socket): a Redis or Valkey that several servers share; where one ends, another goes on.",
            metavar="memory|PATH|URL",
        ),
    ] = "memory",
    fsync: Annotated[
        FsyncName,
        typer.Option(
            help="When what is written to the store is forced to the disk. A killed server loses nothing by any of "
            "them; a power failure takes nothing (always), the last moments (checkpoint) or more (never)."
        ),
    ] = FsyncName.checkpoint,
    session_memory: Annotated[
        int,
        typer.Option(
            help="MiB of sessions that are kept in memory beside the store; the least recently used leave it.", min=1
        ),
    ] = 256,
    session_ttl: Annotated[
        float,
        typer.Option(help="Seconds after which a session that nobody has used is deleted; 0: never.", min=0),
    ] = 0.0,
    sessions_per_caller: Annotated[
        int, typer.Option(help="How many sessions one caller may have; 0: as many as they like.", min=0)
    ] = 0,
    snapshot_steps: Annotated[
        int,
        typer.Option(
            help="Steps between two states that a session keeps, about: so many are computed again after a crash or a "
            "rewind.",
            min=1,
        ),
    ] = 512,
    prefix_cache: Annotated[
        int,
        typer.Option(
            help="MiB of states that are kept behind prompts and inputs that have been read: whoever asks again waits "
            "for nothing that has been read before. 0: none.",
            min=0,
        ),
    ] = 64,
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="Callers share these states. One may then learn, by how soon it is answered, that another has asked "
            "the same.",
        ),
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="console: for people. json: one object a line.")
    ] = LogFormat.console,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every call that is cancelled, too.")] = False,
) -> None:
    """Serve bundles until SIGTERM or Ctrl-C, which let running calls finish; a second one does not."""
    from elman_bundle import MANIFEST, BundleError
    from elman_server.application import ServerOptions, find_bundles
    from elman_server.engine import ProviderChoice
    from elman_server.rpc.validation import Limits
    from elman_server.sessions import Fsync, SessionOptions

    _configure_log(log_format, verbose)
    for path in bundles:
        if (path / _OF_A_RUN).is_file() and not any((*path.glob(MANIFEST), *path.glob(f"*/{MANIFEST}"))):
            raise BundleError(f"{path} is a training run, not a bundle: elman export {path} makes one of it")
    host, colon, port = listen.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise typer.BadParameter(f"--listen {listen}: expected HOST:PORT, such as 0.0.0.0:50051 or [::1]:50051")
    options = ServerOptions(
        host=host,
        port=int(port),
        provider=ProviderChoice(provider.value),
        threads=threads,
        slots=slots,
        waiting_limit=waiting_limit,
        chunk_seconds=chunk_ms / 1000,
        gather_seconds=gather_ms / 1000,
        messages_per_second=message_rate,
        limits=Limits(max_tokens_limit, input_limit, message_limit),
        write_timeout=write_timeout,
        drain_timeout=drain_timeout,
        store=store,
        fsync=Fsync(fsync.value),
        sessions=SessionOptions(
            memory_bytes=session_memory * 2**20,
            time_to_live=session_ttl,
            per_caller=sessions_per_caller,
            snapshot_steps=snapshot_steps,
        ),
        prefix_bytes=prefix_cache * 2**20,
        share_prefixes=share_prefixes,
    )
    asyncio.run(_serve(find_bundles(bundles), options))


async def _serve(bundles: list[Bundle], options: ServerOptions) -> None:
    import structlog

    from elman_server.application import Server, serve_bundle, share_interpreter, store_name, told_to_end

    log = structlog.get_logger("elman")
    loop = asyncio.get_running_loop()
    models = []
    with told_to_end() as told:
        for number, bundle in enumerate(bundles):
            model = await asyncio.to_thread(serve_bundle, bundle, options, loop, number)
            ability = "generates" if model.generates else "labels"
            log.info("model ready", model=model.name, does=ability, provider=model.provider, digest=bundle.digest[:19])
            models.append(model)
            if told.is_set():
                return
        share_interpreter()
        server = Server(options, models)
        await server.start()
        address = f"{options.host}:{server.port}"
        log.info(
            "listening",
            address=address,
            slots=options.slots,
            threads=options.thread_count,
            messages_per_second=options.message_rate,
            sessions=store_name(options),
            waiting="spinning in a run, asleep between runs",
        )
        await told.wait()
        await server.drain()
    log.info("ended")


def _configure_log(form: LogFormat, verbose: bool) -> None:
    import structlog

    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form is LogFormat.json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if form is LogFormat.json else "%H:%M:%S"),
            *([structlog.processors.format_exc_info] if form is LogFormat.json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
