"""Many requests in one call: they are sent together and answered together, each with its own result or error.

The cost of a separate call exceeds that of a short answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc

from elman.connection import Metadata
from elman.errors import DeadlineExceededError, ElmanError, UnavailableError, from_failure, from_rpc_error
from elman.generation_results import Continuation, ContinuationCollector
from elman.unary_calls import UnaryCalls
from elman_protos import v1

_MESSAGE_BYTES = 512 * 1024  # of the requests in one message, about
OnResponse = Callable[[Any], None]


class MultiplexedCalls(UnaryCalls):
    """Requests that share one call for all generations, and one for all classifications; see `Client.many`.

    They are made concurrently within `async with`, for example by `asyncio.gather`. Its end cancels everything that is
    still in progress. A request whose time limit passes, or whose task is cancelled, is no longer waited for, but the
    server completes it.
    """

    def __init__(
        self,
        stub: v1.InferenceServiceAsyncStub,
        address: str,
        seconds: Callable[[float | None], float | None],
        metadata: Metadata,
    ) -> None:
        self._address = address
        self._find_seconds = seconds
        self._generations = _SharedCall(
            lambda: stub.GenerateMany(metadata=metadata), v1.GenerateManyRequest, address, lambda answer: answer.last
        )
        self._classifications = _SharedCall(
            lambda: stub.ClassifyMany(metadata=metadata), v1.ClassifyManyRequest, address, lambda answer: True
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._generations.close()
        await self._classifications.close()

    async def _generate_all(self, request: v1.GenerateRequest, timeout: float | None) -> list[Continuation]:
        collector = ContinuationCollector()
        await self._send(self._generations, request, collector.add, self._seconds(timeout))
        return collector.continuations()

    async def _classify(self, request: v1.ClassifyRequest, timeout: float | None) -> v1.ClassifyResponse:
        response = v1.ClassifyResponse()
        await self._send(self._classifications, request, response.CopyFrom, timeout)
        return response

    def _seconds(self, timeout: float | None) -> float | None:
        return self._find_seconds(timeout)

    async def _send(self, shared: _SharedCall, request: Any, on_response: OnResponse, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await shared.send(request, on_response)
        except TimeoutError as error:
            message = f"the time limit of {timeout:g} seconds has passed"
            raise DeadlineExceededError(message, code=grpc.StatusCode.DEADLINE_EXCEEDED) from error


class _SharedCall:
    """One call to the server, which starts with the first request, and again after it was lost.

    Args:
        start: starts the call.
        message: makes a message of requests.
        address: the server's address, for errors.
        is_last: returns whether an answer is the last one to its request.
    """

    def __init__(
        self, start: Callable[[], Any], message: Callable[..., Any], address: str, is_last: Callable[[Any], bool]
    ) -> None:
        self._start = start
        self._message = message
        self._address = address
        self._is_last = is_last
        self._unsent: list[Any] = []
        self._pending: dict[int, tuple[OnResponse, asyncio.Future[None]]] = {}  # by the request's number in the call
        self._count = 0
        self._has_unsent = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def send(self, request: Any, on_response: OnResponse) -> None:
        """Send a request and wait for its last answer.

        Args:
            request: the request.
            on_response: called with each response.

        Raises:
            ElmanError: the request or the whole call failed.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        index = self._count
        self._count += 1
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[index] = on_response, answered
        self._unsent.append(request)
        self._has_unsent.set()
        await answered

    async def close(self) -> None:
        """Cancel everything in progress."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def _run(self) -> None:
        """Send requests and dispatch answers until the call ends."""
        call = self._start()
        writing = asyncio.create_task(self._write(call))
        failure: ElmanError = UnavailableError("the connection was lost", code=grpc.StatusCode.CANCELLED)
        try:
            while (answers := await call.read()) is not grpc.aio.EOF:
                for answer in answers.answers:
                    self._dispatch(answer)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error, self._address)
        finally:
            writing.cancel()
            call.cancel()
            pending, self._pending, self._unsent, self._count = self._pending, {}, [], 0
            self._running = None
            for _, answered in pending.values():
                if not answered.done():
                    answered.set_exception(failure)

    async def _write(self, call: Any) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            while self._unsent:
                # grpc.aio refuses to write to a call that has ended; reading then reports why it has.
                with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await call.write(self._message(requests=self._take_unsent()))

    def _take_unsent(self) -> list[Any]:
        """The requests of the next message."""
        size, count = 0, 0
        for request in self._unsent:
            size += request.ByteSize()
            if count and size > _MESSAGE_BYTES:
                break
            count += 1
        taken, self._unsent = self._unsent[:count], self._unsent[count:]
        return taken

    def _dispatch(self, answer: Any) -> None:
        on_response, answered = self._pending[answer.request_index]
        if not answered.done():  # Otherwise the caller has stopped waiting.
            if answer.HasField("failure"):
                answered.set_exception(from_failure(answer.failure))
            elif answer.HasField("response"):
                on_response(answer.response)
        if self._is_last(answer):
            del self._pending[answer.request_index]
            if not answered.done():
                answered.set_result(None)
