"""What surrounds every call: errors become statuses, calls are counted, and a draining server takes no new ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog

from elman_server.errors import DomainError, ServerDrainingError
from elman_server.rpc.transport.statuses import grpc_status, row_of

_log = structlog.get_logger(__name__)
_OURS = "/elman."
_PATIENCE = 2.0  # seconds

Handler = Callable[[Any, Any], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of elman's own services; health and reflection pass untouched.

    Attributes:
        draining: set when new calls are refused.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # wrapped, by the method's full name
        self._active = 0
        self.draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self.draining.set()

    async def wait_until_idle(self) -> None:
        """Wait until no call is active."""
        await self._idle.wait()

    @property
    def active(self) -> int:
        """The number of calls under way."""
        return self._active

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        if details.method not in self._handlers:
            make, inner = _parts(handler)
            self._handlers[details.method] = make(
                self._wrapped(inner, details.method.rpartition("/")[2]),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return self._handlers[details.method]

    def _wrapped(self, inner: Handler, name: str) -> Handler:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            self._active += 1
            self._idle.clear()
            try:
                if self.draining.is_set():
                    raise ServerDrainingError
                return await inner(request, context)
            except DomainError as error:
                _log.info("call refused", call=name, reason=row_of(error).reason, error=str(error))
                await _end(context, error)
            except asyncio.CancelledError:
                _log.debug("call cancelled", call=name)
                raise
            except grpc.aio.InternalError:  # What grpc raises where a client has gone while it was being written to.
                _log.debug("client gone", call=name)
            except Exception as error:
                _log.exception("call failed", call=name)
                await _end(context, error)
            finally:
                self._active -= 1
                if not self._active:
                    self._idle.set()

        return call


async def _end(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    """End a call with an error. A client that does not read will find it when it does; nobody waits for that."""
    with contextlib.suppress(TimeoutError, grpc.aio.InternalError):
        async with asyncio.timeout(_PATIENCE):
            await context.abort_with_status(grpc_status(error))


def _parts(handler: grpc.RpcMethodHandler[Any, Any]) -> tuple[Callable[..., grpc.RpcMethodHandler[Any, Any]], Handler]:
    """The handler's function and what makes such a handler."""
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        function = getattr(handler, kind)
        if function is not None:
            return getattr(grpc, f"{kind}_rpc_method_handler"), function
    raise ValueError("a handler without a function")
