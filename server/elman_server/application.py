"""A server: its store and its door are opened, health is reported, and calls drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import structlog

from elman_server.configuration import prefix_bytes, request_limits, session_options
from elman_server.inference.grammars import GrammarCompiler
from elman_server.inference.model import ServedModel
from elman_server.inference.prefix_cache import PrefixCache
from elman_server.inference.registry import ModelRegistry
from elman_server.inference.resources import Resources
from elman_server.rpc.server import GrpcServer
from elman_server.sessions import Sessions, open_store
from elman_server.settings import Settings

_STATUS_SECONDS = 1.0  # for the statuses of calls that have been cut off
_CLOSE_SECONDS = 0.5  # for connections to close

_log = structlog.get_logger(__name__)


class Server:
    """A server on one event loop: `start`, and in the end `drain`.

    Args:
        settings: how to serve.
        models: the models; `serve_bundle` makes them.

    Attributes:
        port: the port that it listens on, as soon as it has started.

    Raises:
        StoreOpenError: the store of sessions cannot be opened.
    """

    def __init__(self, settings: Settings, models: Iterable[ServedModel]) -> None:
        self.settings = settings
        self.port = 0
        self._resources = Resources(
            ModelRegistry(models),
            Sessions(open_store(settings), session_options(settings)),
            PrefixCache(prefix_bytes(settings), shared=settings.share_prefixes),
            GrammarCompiler(),
            request_limits(settings),
        )
        self._grpc = GrpcServer(self._resources, settings.write_timeout, settings.idle_timeout)

    @property
    def models(self) -> ModelRegistry:
        """The models that it serves."""
        return self._resources.models

    @property
    def active_calls(self) -> int:
        """The number of active calls."""
        return self._grpc.calls.active

    async def start(self) -> None:
        """Listen; health says SERVING when this returns, and not before.

        Raises:
            StartError: the address is not available.
        """
        self.port = self._grpc.bind(self.settings.listen)
        for model in self.models:
            model.scheduler.start()
        await self._grpc.start()
        self._resources.sessions.start(self._grpc.set_sessions_serving)
        await self._grpc.set_serving()

    async def drain(self) -> None:
        """Accept no new calls, let those under way finish within the drain timeout, then end. A call that is cut off is
        answered with a status."""
        calls, timeout = self._grpc.calls, self.settings.drain_timeout
        await self._grpc.drain()
        self._resources.sessions.hand_over()
        _log.info("draining", calls=calls.active, drain_timeout_s=timeout, hint="a second signal forces the exit")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(calls.wait_until_idle(), timeout)
        for model in self.models:
            await asyncio.to_thread(model.scheduler.stop)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(calls.wait_until_idle(), _STATUS_SECONDS)
        await self._grpc.stop(_CLOSE_SECONDS)
        await asyncio.to_thread(self._resources.grammars.close)
        await self._resources.sessions.close()
