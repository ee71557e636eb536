"""What surrounds every call: requests are checked for their size and parsed, errors become statuses, calls are counted,
and a draining server accepts no new ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from elman_server.errors import ClientIdleError, DomainError, ServerDrainingError
from elman_server.rpc.transport.activity import Activity, activity
from elman_server.rpc.transport.callers import Context, identify
from elman_server.rpc.transport.sizes import Parse, parsed
from elman_server.rpc.transport.statuses import grpc_status, row_of
from elman_server.rpc.transport.writer import Writer, unfinished_write

_log = structlog.get_logger(__name__)
_METHODS = "/elman."
_END_SECONDS = 2.0  # for which a call whose client does not read counts as active
_FIRST_MESSAGE_SECONDS = 30.0  # A stream that says nothing is ended sooner than one that has fallen silent.

Handler = Callable[[Any, Context], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of elman's own services; health and reflection pass untouched.

    Args:
        message_bytes: bytes that a request message may have.
        idle_timeout: seconds for which neither side of a stream of requests may send anything.
        writer: sends single responses.
    """

    def __init__(self, message_bytes: int, idle_timeout: float, writer: Writer) -> None:
        self._message_bytes = message_bytes
        self._idle_timeout = idle_timeout
        self._writer = writer
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
            self._handlers[details.method] = self._wrapped(handler, details.method.rpartition("/")[2])
        return self._handlers[details.method]

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], name: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap a handler. Messages arrive as bytes, so that their size is known before they are parsed, and what cannot
        be parsed is refused like any other mistake. A single response is sent like those of a stream, so that one that
        nobody reads does not stay in memory; on the wire there is no difference."""
        inner, parse = _function_of(handler), handler.request_deserializer
        assert parse is not None
        answer = inner if handler.response_streaming else self._sending(inner)
        accept = self._streamed if handler.request_streaming else self._single
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        guarded = self._guarded(accept(answer, parse), name)
        return make(guarded, response_serializer=handler.response_serializer)

    def _sending(self, inner: Handler) -> Handler:
        """Wrap a handler that returns its only response."""

        async def call(request: Any, context: Context) -> None:
            await self._writer.write(context, await inner(request, context))

        return call

    def _single(self, inner: Handler, parse: Parse) -> Handler:
        """Wrap the handler of a call with one request message."""

        async def call(request: bytes, context: Context) -> Any:
            return await inner(await parsed(request, parse, self._message_bytes), context)

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
            MessageTooLargeError, TooManyFieldsError: one has more bytes or fields than allowed.
            MalformedMessageError: one cannot be parsed.
            ClientIdleError: none arrives.
            ServerDrainingError: the server is draining.
        """
        draining = asyncio.ensure_future(self._draining.wait())
        following = asyncio.ensure_future(_following(requests))
        active, patience = Activity(), min(self._idle_timeout, _FIRST_MESSAGE_SECONDS)
        activity.set(active)
        try:
            while True:
                while not following.done():
                    left = active.last + patience - time.monotonic()
                    if left <= 0:
                        raise ClientIdleError(patience)
                    await asyncio.wait((following, draining), timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    if draining.done() and not following.done():
                        raise ServerDrainingError
                request = following.result()
                if request is None:
                    return
                active.note()
                patience = self._idle_timeout
                yield await parsed(request, parse, self._message_bytes)
                following = asyncio.ensure_future(_following(requests))
        finally:
            following.cancel()
            draining.cancel()

    def _guarded(self, inner: Handler, name: str) -> Handler:
        """Wrap a handler so that its call is counted and its errors become statuses."""

        async def answer(request: Any, context: Context) -> Exception | None:
            """Answer a call; returns the error that is to be its end."""
            try:
                if self._draining.is_set():
                    raise ServerDrainingError
                identify(context)
                await inner(request, context)
            except DomainError as error:
                _log.info("call refused", call=name, reason=row_of(error).reason, error=str(error))
                return error.with_traceback(None)  # Its frames hold the message.
            except asyncio.CancelledError:
                _log.debug("call cancelled", call=name)
                raise
            except grpc.aio.InternalError:  # Raised by grpc where a client has gone while a message was being sent.
                _log.debug("client gone", call=name)
            except Exception as error:
                _log.exception("call failed", call=name)
                return error.with_traceback(None)
            return None

        async def call(request: Any, context: Context) -> None:
            end: asyncio.Task[None] | None = None
            self._active += 1
            self._idle.clear()
            try:
                error = await answer(request, context)
                if error is not None:
                    end = asyncio.create_task(_end(context, grpc_status(error)))
                    await asyncio.wait((end,), timeout=_END_SECONDS)
            finally:
                self._active -= 1
                if not self._active:
                    self._idle.set()
            if end is not None:
                await asyncio.wait((end,))  # Otherwise grpc would send a status of its own.

        return call


async def _end(context: Context, status: grpc.Status) -> None:
    """End a call with a status, as soon as its client has read the message before it. It may never do so."""
    write = unfinished_write.get()
    with contextlib.suppress(Exception):  # Aborting always raises; writing, where the client has gone.
        if write is not None:
            await write
        await context.abort_with_status(status)


async def _following(requests: AsyncIterator[bytes]) -> bytes | None:
    return await anext(aiter(requests), None)


def _function_of(handler: Any) -> Handler:
    found: Handler = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return found
