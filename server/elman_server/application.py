"""A server: bundles are loaded and warmed up, the services listen, health is reported, and calls drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from elman_bundle import MANIFEST, Bundle, BundleError, load_bundle
from elman_protos import v1
from elman_server.configuration import (
    prefix_bytes,
    request_limits,
    scheduling_pace,
    session_options,
    thread_count,
)
from elman_server.engine import NOTHING, Cores, OnnxEngine, OnnxTreeEngine, Opener
from elman_server.errors import EngineError, ModelLoadError, StartError
from elman_server.rpc.analysis_servicer import AnalysisServicer
from elman_server.rpc.compiling import Compiling
from elman_server.rpc.interceptor import CallInterceptor
from elman_server.rpc.mailbox import deliver_into
from elman_server.rpc.models import Models, ServedModel
from elman_server.rpc.servicer import InferenceServicer
from elman_server.rpc.session_servicer import SessionServicer
from elman_server.rpc.writing import Writer
from elman_server.scheduling import Forest, Rows, Running, Scheduler
from elman_server.sessions import MemoryStore, PrefixCache, Sessions, SqliteStore, Store
from elman_server.sessions.redis import RedisStore
from elman_server.settings import MEMORY, Settings, is_url

_SERVICES = ("elman.v1.AnalysisService", "elman.v1.InferenceService", "elman.v1.SessionService")
# The transport's own limit lies above ours, so that ours can answer with a reason.
_TRANSPORT_SHARE = 4
_TRANSPORT_OPTIONS = (
    ("grpc.so_reuseport", 0),  # Two servers on one port would share the calls and not the state.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

_FIRST_CORE = secrets.randbelow(2**16)  # Several servers on one machine are not all to begin on the same.

_log = structlog.get_logger(__name__)


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


def open_store(settings: Settings) -> Store:
    """The store of sessions.

    Raises:
        StoreOpenError: it cannot be opened.
    """
    store = settings.store.get_secret_value()
    if store == MEMORY:
        return MemoryStore()
    if is_url(store):
        return RedisStore(store)
    return SqliteStore(Path(store), settings.fsync)


class Server:
    """A server on one event loop: `start`, and in the end `drain`.

    Args:
        settings: how to serve.
        models: what to serve; `serve_bundle` makes them.

    Raises:
        StoreOpenError: the store of sessions cannot be opened.
    """

    def __init__(self, settings: Settings, models: Iterable[ServedModel]) -> None:
        self.settings = settings
        self.models = Models(models)
        self._sessions = Sessions(open_store(settings), session_options(settings))
        self._compiling = Compiling()
        self.port = 0
        self._calls = CallInterceptor()
        self._health = health.aio.HealthServicer()
        most = _TRANSPORT_SHARE * settings.message_limit
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
        settings = self.settings
        limits = request_limits(settings)
        writer = Writer(settings.write_timeout)
        prefixes = PrefixCache(prefix_bytes(settings), shared=settings.share_prefixes)
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
        try:
            self.port = self._server.add_insecure_port(settings.listen)
        except RuntimeError as error:
            raise StartError(
                f"listen: cannot listen on {settings.listen}; the address is in use or not of this machine. "
                "Choose another one with --listen"
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
        _log.info("draining", calls=self._calls.active, seconds=self.settings.drain_timeout, hurry="a second signal")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._calls.wait_until_idle(), self.settings.drain_timeout)
        for model in self.models:
            await asyncio.to_thread(model.scheduler.stop)
        with contextlib.suppress(TimeoutError):  # Those cut off are being told so.
            await asyncio.wait_for(self._calls.wait_until_idle(), 1.0)
        await self._server.stop(0.5)
        await asyncio.to_thread(self._compiling.close)
        await self._sessions.close()


def serve_bundle(bundle: Bundle, settings: Settings, loop: asyncio.AbstractEventLoop, number: int = 0) -> ServedModel:
    """Load a bundle's graph and run it once at every likely batch size.

    Args:
        bundle: the model.
        settings: how to serve it.
        loop: where its callers are told.
        number: how many are served already.

    Raises:
        ModelLoadError: it cannot be served here.
    """
    _check_servable(bundle)
    threads = thread_count(settings)
    opener = Opener(settings.provider, threads, Cores.all(threads, _FIRST_CORE + number))
    serve = _serve_trees if bundle.spec.step.HasField("tree") else _serve_rows
    try:
        running, provider = serve(bundle, settings, opener)
    except EngineError as error:
        raise ModelLoadError(f"{bundle.graph_path}: the graph loads but does not run: {error}") from error
    scheduler = Scheduler(bundle.name, running, waiting_limit=settings.waiting_limit, deliver=deliver_into(loop))
    return ServedModel(bundle, scheduler, provider)


def _serve_rows(bundle: Bundle, settings: Settings, opener: Opener) -> tuple[Running, str]:
    """What runs sequences step by step, and where it does."""
    step = bundle.spec.step
    reads_tokens = bool(step.inputs) and step.inputs[0].HasField("token")
    names = {output.WhichOneof("meaning"): output.name for output in step.outputs}
    text = bundle.vocabulary_spec(step.inputs[0].token.vocabulary) if reads_tokens else None
    engine = OnnxEngine(bundle, capacity=settings.slots, opener=opener, chunk_seconds=settings.chunk_ms / 1000)
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
        pace=scheduling_pace(settings),
    )
    return rows, engine.provider


def _serve_trees(bundle: Bundle, settings: Settings, opener: Opener) -> tuple[Running, str]:
    """What runs trees, and where it does."""
    engine = OnnxTreeEngine(bundle, capacity=settings.slots, opener=opener)
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
