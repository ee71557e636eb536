"""What surrounds every call: requests are checked for their size and parsed, errors become statuses, calls are counted,
and a draining server accepts no new ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from elman_server.errors import DomainError, ServerDrainingError
from elman_server.rpc.transport.callers import Context, caller, caller_of
from elman_server.rpc.transport.sizes import Parse, parsed
from elman_server.rpc.transport.statuses import grpc_status, row_of

_log = structlog.get_logger(__name__)
_METHODS = "/elman."
_ABORT_SECONDS = 2.0

Handler = Callable[[Any, Context], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of elman's own services; health and reflection pass untouched.

    Args:
        message_bytes: bytes that a request message may have.
    """

    def __init__(self, message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # wrapped, by the full name of the method
        self._active = 0
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """Refuse new calls, and new messages of calls under way, from now on."""
        self._draining.set()

    async def wait_until_idle(self) -> None:
        """Wait until no call is active."""
        await self._idle.wait()

    @property
    def active(self) -> int:
        """The number of active calls."""
        return self._active

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_METHODS):
            return handler
        if details.method not in self._handlers:
            make, inner = _parts(handler)
            assert handler.request_deserializer is not None
            accepted = self._streamed if handler.request_streaming else self._single
            # Messages arrive as bytes, so that their size is known before they are parsed, and what cannot be parsed
            # is refused like any other mistake.
            self._handlers[details.method] = make(
                self._guarded(accepted(inner, handler.request_deserializer), details.method.rpartition("/")[2]),
                response_serializer=handler.response_serializer,
            )
        return self._handlers[details.method]

    def _single(self, inner: Handler, parse: Parse) -> Handler:
        """Wrap the handler of a call with one request message."""

        async def call(request: bytes, context: Context) -> Any:
            return await inner(parsed(request, parse, self._message_bytes), context)

        return call

    def _streamed(self, inner: Handler, parse: Parse) -> Handler:
        """Wrap the handler of a call with a stream of request messages."""

        async def call(requests: AsyncIterator[bytes], context: Context) -> Any:
            async with contextlib.aclosing(self._messages(requests, parse)) as messages:
                return await inner(messages, context)

        return call

    async def _messages(self, requests: AsyncIterator[bytes], parse: Parse) -> AsyncGenerator[Message, None]:
        """Yield the messages of a stream.

        Raises:
            MessageTooLargeError: one has more bytes than allowed.
            MalformedMessageError: one cannot be parsed.
            ServerDrainingError: the server is draining.
        """
        draining = asyncio.ensure_future(self._draining.wait())
        following = asyncio.ensure_future(_following(requests))
        try:
            while True:
                await asyncio.wait((following, draining), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise ServerDrainingError
                request = following.result()
                if request is None:
                    return
                yield parsed(request, parse, self._message_bytes)
                following = asyncio.ensure_future(_following(requests))
        finally:
            following.cancel()
            draining.cancel()

    def _guarded(self, inner: Handler, name: str) -> Handler:
        """Wrap a handler so that its call is counted and its errors become statuses."""

        async def call(request: Any, context: Context) -> Any:
            self._active += 1
            self._idle.clear()
            try:
                if self._draining.is_set():
                    raise ServerDrainingError
                caller.set(caller_of(context))
                return await inner(request, context)
            except DomainError as error:
                _log.info("call refused", call=name, reason=row_of(error).reason, error=str(error))
                await _abort(context, error)
            except asyncio.CancelledError:
                _log.debug("call cancelled", call=name)
                raise
            except grpc.aio.InternalError:  # Raised by grpc where a client has gone while a message was being sent.
                _log.debug("client gone", call=name)
            except Exception as error:
                _log.exception("call failed", call=name)
                await _abort(context, error)
            finally:
                self._active -= 1
                if not self._active:
                    self._idle.set()

        return call


async def _abort(context: Context, error: Exception) -> None:
    """End a call with an error. The server does not wait long for a client that does not read."""
    with contextlib.suppress(TimeoutError, grpc.aio.InternalError):
        async with asyncio.timeout(_ABORT_SECONDS):
            await context.abort_with_status(grpc_status(error))


async def _following(requests: AsyncIterator[bytes]) -> bytes | None:
    return await anext(aiter(requests), None)


def _parts(handler: grpc.RpcMethodHandler[Any, Any]) -> tuple[Callable[..., grpc.RpcMethodHandler[Any, Any]], Handler]:
    """Return the function of a handler, and what makes such a handler."""
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        function = getattr(handler, kind)
        if function is not None:
            return getattr(grpc, f"{kind}_rpc_method_handler"), function
    raise ValueError("a handler without a function")
