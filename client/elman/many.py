"""Many calls in one: what they ask goes out together and what is answered comes back together, and each has its own
result or error. What a call costs by itself is more than a short answer does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc

from elman.connection import Metadata
from elman.decoding import Continuation, Gathering
from elman.errors import DeadlineExceededError, ElmanError, UnavailableError, from_failure, from_rpc_error
from elman.whole import WholeCalls
from elman_protos import v1

_MESSAGE_BYTES = 512 * 1024  # of requests in one message, about
Take = Callable[[Any], None]  # takes a response


class ManyCalls(WholeCalls):
    """Calls that share one call to the server for all generations, and one for all inputs to be labelled. They are made
    within `async with`, and side by side, as by `asyncio.gather`; at its end whatever is under way is broken off.

    A call that is given up on (its time is up, its task is cancelled) is waited for no longer, but the server goes on.
    """

    def __init__(
        self,
        stub: v1.InferenceServiceAsyncStub,
        address: str,
        seconds: Callable[[float | None], float | None],
        metadata: Metadata,
    ) -> None:
        """See `Client.many`."""
        self._address = address
        self._find_seconds = seconds
        self._generating = _Shared(
            lambda: stub.GenerateMany(metadata=metadata), v1.GenerateManyRequest, address, lambda answer: answer.last
        )
        self._labelling = _Shared(
            lambda: stub.ClassifyMany(metadata=metadata), v1.ClassifyManyRequest, address, lambda answer: True
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._generating.close()
        await self._labelling.close()

    async def _whole(self, request: v1.GenerateRequest, timeout: float | None) -> list[Continuation]:
        gathering = Gathering()
        await self._ask(self._generating, request, gathering.take, self._seconds(timeout))
        return gathering.continuations()

    async def _labelled(self, request: v1.ClassifyRequest, timeout: float | None) -> v1.ClassifyResponse:
        found = v1.ClassifyResponse()
        await self._ask(self._labelling, request, found.CopyFrom, timeout)
        return found

    def _seconds(self, timeout: float | None) -> float | None:
        return self._find_seconds(timeout)

    async def _ask(self, shared: _Shared, request: Any, take: Take, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await shared.ask(request, take)
        except TimeoutError as error:
            message = f"the time limit of {timeout:g} seconds has passed"
            raise DeadlineExceededError(message, code=grpc.StatusCode.DEADLINE_EXCEEDED) from error


class _Shared:
    """One call to the server that many share; begun when there is something to ask, and again after it was broken off.

    Args:
        begin: makes the call.
        message: makes a message of requests.
        address: of the server, for errors.
        is_last: whether an answer is the last one to its request.
    """

    def __init__(
        self, begin: Callable[[], Any], message: Callable[..., Any], address: str, is_last: Callable[[Any], bool]
    ) -> None:
        self._begin = begin
        self._message = message
        self._address = address
        self._is_last = is_last
        self._unsent: list[Any] = []
        self._asked: dict[int, tuple[Take, asyncio.Future[None]]] = {}  # by the request's number in the call
        self._count = 0
        self._news = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def ask(self, request: Any, take: Take) -> None:
        """Have a request answered.

        Args:
            request: what is asked.
            take: takes each response.

        Raises:
            ElmanError: it, or the whole call, has failed.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        index = self._count
        self._count += 1
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked[index] = take, answered
        self._unsent.append(request)
        self._news.set()
        await answered

    async def close(self) -> None:
        """Break off what is under way."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def _run(self) -> None:
        """Send what is asked and take what is answered, until the call is broken off."""
        call = self._begin()
        sending = asyncio.create_task(self._send(call))
        message = "the call was broken off"
        failure: ElmanError = UnavailableError(message, code=grpc.StatusCode.CANCELLED)
        try:
            while (answers := await call.read()) is not grpc.aio.EOF:
                for answer in answers.answers:
                    self._take(answer)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error, self._address)
        finally:
            sending.cancel()
            call.cancel()
            asked, self._asked, self._unsent, self._count = self._asked, {}, [], 0
            self._running = None
            for _, answered in asked.values():
                if not answered.done():
                    answered.set_exception(failure)

    async def _send(self, call: Any) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._unsent:
                # grpc.aio will not write to a call that has ended meanwhile; reading then tells why it has.
                with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await call.write(self._message(requests=self._next()))

    def _next(self) -> list[Any]:
        """The requests of the next message."""
        size, count = 0, 0
        for request in self._unsent:
            size += request.ByteSize()
            if count and size > _MESSAGE_BYTES:
                break
            count += 1
        some, self._unsent = self._unsent[:count], self._unsent[count:]
        return some

    def _take(self, answer: Any) -> None:
        take, answered = self._asked[answer.request_index]
        if not answered.done():  # Else nobody waits for it any more.
            if answer.HasField("failure"):
                answered.set_exception(from_failure(answer.failure))
            elif answer.HasField("response"):
                take(answer.response)
        if self._is_last(answer):
            del self._asked[answer.request_index]
            if not answered.done():
                answered.set_result(None)
