"""A whole server: bundles loaded and warmed, the edge opened, health told, and drained in the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from elman_bundle import MANIFEST, Bundle, BundleError, load_bundle
from elman_protos import v1
from elman_server.engine import NOTHING, Cores, OnnxEngine, OnnxTreeEngine, Opener, ProviderChoice, core_count
from elman_server.errors import EngineError, ModelLoadError, StartError
from elman_server.rpc.analysis_servicer import AnalysisServicer
from elman_server.rpc.compiling import Compiling
from elman_server.rpc.interceptor import CallInterceptor
from elman_server.rpc.mailbox import deliver_into
from elman_server.rpc.models import Models, ServedModel
from elman_server.rpc.servicer import InferenceServicer
from elman_server.rpc.session_servicer import SessionServicer
from elman_server.rpc.validation import Limits
from elman_server.rpc.writing import Writer
from elman_server.scheduling import Forest, Pace, Rows, Running, Scheduler
from elman_server.sessions import Fsync, MemoryStore, PrefixCache, SessionOptions, Sessions, SqliteStore, Store
from elman_server.sessions.redis import RedisStore, public_name

_SERVICES = ("elman.v1.AnalysisService", "elman.v1.InferenceService", "elman.v1.SessionService")
# The transport's own limit lies above ours, so that ours can answer with a reason.
_TRANSPORT_SHARE = 4
_TRANSPORT_OPTIONS = (
    ("grpc.so_reuseport", 0),  # Two servers on one port would share the calls and not the state.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

MEMORY = "memory"
_REDIS = ("redis://", "rediss://", "unix://")

# On a fast processor a message costs some 60 us here and 40 us at its client: this many take 3 % of the cores, or 5 %
# where the clients are on the same machine. Where it costs more, that is seen by what telling takes of the time.
MESSAGES_PER_CORE = 500
_TELLING_SHARE = 0.025

_FIRST_CORE = secrets.randbelow(2**16)  # Several servers on one machine are not all to begin on the same.
_SAME_SIGNAL = 1.0  # seconds
_TURN = 0.0001  # seconds for which a thread may keep the interpreter when another wants it
_ALLOCATIONS = 20_000  # objects between two collections

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        host: the address to listen on.
        port: 0 for any free one.
        provider: where models run.
        threads: how many threads one step may use; 0 for one for each core that the process may use.
        slots: how many sequences of one model run at once.
        waiting_limit: how many more may wait, per model.
        chunk_seconds: how long one run of the model may take, as far as one step does not take longer: a newcomer
            waits for one at most.
        gather_seconds: for how long the tokens of a stream gather to a message, unless it asks for something else.
        messages_per_second: how many messages the streams of one model together are sent, about; with many streams
            tokens gather for longer. 0 for MESSAGES_PER_CORE, or fewer where telling the streams would keep the model
            waiting for more than _TELLING_SHARE of the time.
        limits: what one request may ask for.
        write_timeout: seconds that a client may leave a message unread.
        drain_timeout: seconds that running calls have to finish when the server is told to end.
        store: where sessions are kept: the path of a file; the URL of a Redis, which servers share; or "memory", where
            they end with the server.
        fsync: when what is written to the file is forced to the disk.
        sessions: how they are kept.
        prefix_bytes: how much memory the states behind prompts that have been read may take; 0: none are kept.
        share_prefixes: whether callers share them: one may then learn, by how soon it is answered, that another has
            asked the same.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    provider: ProviderChoice = ProviderChoice.AUTO
    threads: int = 0
    slots: int = 128
    waiting_limit: int = 1024
    chunk_seconds: float = 0.005
    gather_seconds: float = 0.04
    messages_per_second: float = 0.0
    limits: Limits = field(default_factory=Limits)
    write_timeout: float = 60.0
    drain_timeout: float = 30.0
    store: str = MEMORY
    fsync: Fsync = Fsync.CHECKPOINT
    sessions: SessionOptions = field(default_factory=SessionOptions)
    prefix_bytes: int = 64 * 1024 * 1024
    share_prefixes: bool = False

    @property
    def thread_count(self) -> int:
        """How many threads one step uses."""
        if self.threads:
            return self.threads
        return core_count()

    @property
    def message_rate(self) -> float:
        """How many messages a second the streams of one model together are sent at most, about."""
        return self.messages_per_second or core_count() * MESSAGES_PER_CORE

    def pace(self) -> Pace:
        """How one model is to go."""
        share = 0.0 if self.messages_per_second else _TELLING_SHARE
        return Pace(self.chunk_seconds, self.gather_seconds, self.message_rate, share)


def find_bundles(paths: Iterable[Path]) -> list[Bundle]:
    """Load bundles: each path is one, or a folder of some.

    Raises:
        BundleError: a path holds none, one is damaged, or two have the same name.
    """
    bundles: dict[str, Bundle] = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        folders = [path]
        if path.is_dir() and not (path / MANIFEST).exists():
            folders = sorted(found.parent for found in path.glob(f"*/{MANIFEST}")) or folders
        for folder in folders:
            bundle = load_bundle(folder)
            if bundle.name in bundles:
                raise BundleError(f"{folder} and {bundles[bundle.name].path} both hold a model named {bundle.name!r}")
            bundles[bundle.name] = bundle
    return list(bundles.values())


def open_store(options: ServerOptions) -> Store:
    """The store of sessions.

    Raises:
        StoreOpenError: it cannot be opened.
    """
    if options.store == MEMORY:
        return MemoryStore()
    if options.store.startswith(_REDIS):
        return RedisStore(options.store)
    return SqliteStore(Path(options.store), options.fsync)


def store_name(options: ServerOptions) -> str:
    """Where sessions are kept, without what is secret about it."""
    return public_name(options.store) if options.store.startswith(_REDIS) else options.store


class Server:
    """A server on one event loop: `start`, and in the end `drain`.

    Args:
        options: how to serve.
        models: what to serve; `serve_bundle` makes them.

    Raises:
        StoreOpenError: the store of sessions cannot be opened.
    """

    def __init__(self, options: ServerOptions, models: Iterable[ServedModel]) -> None:
        self.options = options
        self.models = Models(models)
        self._sessions = Sessions(open_store(options), options.sessions)
        self._compiling = Compiling()
        self.port = 0
        self._calls = CallInterceptor()
        self._health = health.aio.HealthServicer()
        most = _TRANSPORT_SHARE * options.limits.message_bytes
        self._server = grpc.aio.server(
            interceptors=[self._calls],
            options=[
                *_TRANSPORT_OPTIONS,
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", -1),
            ],
        )

    async def start(self) -> None:
        """Listen; health says SERVING when this returns, and not before.

        Raises:
            StartError: the address cannot be had.
        """
        limits = self.options.limits
        writer = Writer(self.options.write_timeout)
        prefixes = PrefixCache(self.options.prefix_bytes, shared=self.options.share_prefixes)
        servicer = InferenceServicer(
            self.models,
            self._sessions,
            prefixes,
            self._compiling,
            limits,
            writer,
            self._calls.draining,
        )
        v1.add_InferenceServiceServicer_to_server(servicer, self._server)
        analysis = AnalysisServicer(self.models, prefixes, limits, writer)
        v1.add_AnalysisServiceServicer_to_server(analysis, self._server)
        v1.add_SessionServiceServicer_to_server(SessionServicer(self.models, self._sessions, limits), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        address = f"{self.options.host}:{self.options.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {address}: is something else there? --listen chooses another"
            ) from error
        for model in self.models:
            model.scheduler.start()
        await self._server.start()
        self._sessions.start()
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    @property
    def active_calls(self) -> int:
        """The number of calls under way."""
        return self._calls.active

    async def drain(self) -> None:
        """Take no new calls, let those under way finish for a while, then end. No call is cut without a word."""
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._calls.drain()
        self._sessions.hand_over()
        _log.info("draining", calls=self._calls.active, seconds=self.options.drain_timeout, hurry="a second signal")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._calls.wait_until_idle(), self.options.drain_timeout)
        for model in self.models:
            await asyncio.to_thread(model.scheduler.stop)
        with contextlib.suppress(TimeoutError):  # Those cut off are being told so.
            await asyncio.wait_for(self._calls.wait_until_idle(), 1.0)
        await self._server.stop(0.5)
        await asyncio.to_thread(self._compiling.close)
        await self._sessions.close()


@contextlib.contextmanager
def told_to_end() -> Iterator[asyncio.Event]:
    """An event that SIGTERM or SIGINT sets; a second one ends the process at once, whoever is still served."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    first = 0.0

    def tell() -> None:
        nonlocal first
        if not told.is_set():
            first = loop.time()
            told.set()
        # Ctrl-C often comes twice, from the terminal and from whoever started us.
        elif loop.time() - first > _SAME_SIGNAL:
            _log.warning("ended at once", reason="told a second time")
            os._exit(130)

    for number in numbers:
        loop.add_signal_handler(number, tell)
    try:
        yield told
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def share_interpreter() -> None:
    """Set the interpreter for several threads that each need it often and for a short time: a scheduler whose model has
    run shall not wait long for those who talk to clients. To be called when the models are loaded."""
    sys.setswitchinterval(_TURN)
    gc.collect()
    gc.freeze()  # What has been loaded stays; no collection need look at it again.
    gc.set_threshold(_ALLOCATIONS)


def serve_bundle(
    bundle: Bundle, options: ServerOptions, loop: asyncio.AbstractEventLoop, number: int = 0
) -> ServedModel:
    """Load a bundle's graph and run it once at every likely batch size.

    Args:
        bundle: the model.
        options: how to serve it.
        loop: where its callers are told.
        number: how many are served already.

    Raises:
        ModelLoadError: it cannot be served here.
    """
    _check_servable(bundle)
    opener = Opener(options.provider, options.thread_count, Cores.all(options.thread_count, _FIRST_CORE + number))
    serve = _serve_trees if bundle.spec.step.HasField("tree") else _serve_rows
    try:
        running, provider = serve(bundle, options, opener)
    except EngineError as error:
        raise ModelLoadError(f"{bundle.graph_path}: the graph loads but does not run: {error}") from error
    scheduler = Scheduler(bundle.name, running, waiting_limit=options.waiting_limit, deliver=deliver_into(loop))
    return ServedModel(bundle, scheduler, provider)


def _serve_rows(bundle: Bundle, options: ServerOptions, opener: Opener) -> tuple[Running, str]:
    """What runs sequences step by step, and where it does."""
    step = bundle.spec.step
    reads_tokens = bool(step.inputs) and step.inputs[0].HasField("token")
    names = {output.WhichOneof("meaning"): output.name for output in step.outputs}
    text = bundle.vocabulary_spec(step.inputs[0].token.vocabulary) if reads_tokens else None
    engine = OnnxEngine(bundle, capacity=options.slots, opener=opener, chunk_seconds=options.chunk_seconds)
    engine.warm_up()
    _log.info(
        "measured",
        model=bundle.name,
        steps_a_run=engine.step_counts_for(False, NOTHING)[-1],
        side_by_side=engine.divided_at,
    )
    rows = Rows(
        bundle.name,
        engine,
        input_name=step.inputs[0].name if step.inputs else None,
        vocabulary_size=text.size if text is not None and "next_token_logits" in names else 0,
        forbidden_token=text.unknown_token_id if text is not None and text.HasField("unknown_token_id") else None,
        label_output=names.get("label_logits"),
        pace=options.pace(),
    )
    return rows, engine.provider


def _serve_trees(bundle: Bundle, options: ServerOptions, opener: Opener) -> tuple[Running, str]:
    """What runs trees, and where it does."""
    engine = OnnxTreeEngine(bundle, capacity=options.slots, opener=opener)
    engine.warm_up()
    (label_output,) = (output.name for output in bundle.spec.step.outputs if output.HasField("label_logits"))
    return Forest(bundle.name, engine, label_output=label_output), engine.provider


def _check_servable(bundle: Bundle) -> None:
    """Refuse what no call of this server could use.

    Raises:
        ModelLoadError: says what it is.
    """
    manifest, step = bundle.path / MANIFEST, bundle.spec.step
    has_encoder = bundle.spec.HasField("encoder")
    if len(step.inputs) > 1:
        raise ModelLoadError(f"{manifest}: this server serves steps with one input, or none where there is an encoder")
    if step.constants and not has_encoder:
        raise ModelLoadError(f"{manifest}: this server serves constants that an encoder gives, and there is none")
    meanings = {output.WhichOneof("meaning") for output in step.outputs}
    generates, labels = "next_token_logits" in meanings, "label_logits" in meanings
    reads_tokens = bool(step.inputs) and step.inputs[0].HasField("token")
    if not reads_tokens and (generates or not labels):
        what = "numbers" if step.inputs else "nothing"
        raise ModelLoadError(f"{manifest}: a step that reads {what} is served if it has labels and generates nothing")
    scopes = {output.label_logits.scope for output in step.outputs if output.HasField("label_logits")}
    if not step.inputs and scopes != {v1.LABEL_SCOPE_SEQUENCE}:
        raise ModelLoadError(f"{manifest}: a step that reads nothing has labels for the whole sequence only")
    if has_encoder and step.inputs and (labels or not generates):
        raise ModelLoadError(
            f"{manifest}: a step behind an encoder is served if it generates tokens and has no labels, or if it has "
            "labels and no inputs"
        )
