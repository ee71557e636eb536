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
    session_options,
)
from elman_server.errors import StartError
from elman_server.rpc.analysis_servicer import AnalysisServicer
from elman_server.rpc.compiling import Compiling
from elman_server.rpc.interceptor import CallInterceptor
from elman_server.rpc.models import Models, ServedModel
from elman_server.rpc.servicer import InferenceServicer
from elman_server.rpc.session_servicer import SessionServicer
from elman_server.rpc.writing import Writer
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
