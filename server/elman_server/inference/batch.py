"""Batch calls: many requests in one call. They run concurrently, and their answers are collected as they come.

A request is whatever the door passes on; this module only counts and forwards it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from elman_server.errors import DomainError, QueueFullError

_MAX_RUNNING = 256  # requests of one call
_MAX_TAKEN = 16  # requests that are taken up before the event loop serves other calls
_RETRIES_PER_END = 2  # refused requests that retry when a request has finished; with one, concurrency could never grow
_RETRY_SECONDS = 0.01
_MAX_UNSENT = 1024  # answers; a request with more waits until the client has read some

_log = structlog.get_logger(__name__)

Request = TypeVar("Request")
Result = TypeVar("Result")
AnswerOne = Callable[[Request], AsyncGenerator[Result, None]]
Cancel = Callable[[], object]
Outcome = Callable[[], Any]  # returns a result, or raises what kept it from coming
Done = Callable[[Outcome], None]
# Starts requests that run without a task each. It is given requests, and for each what to call on the event loop with
# its outcome; it starts the first of them, as many as it can, and returns what cancels those. If something is wrong
# with one of the requests it may raise, having started none.
Start = Callable[[Sequence[Request], Sequence[Done]], Sequence[Cancel]]


@dataclass(slots=True)
class Answer(Generic[Result]):
    """A part of the answer to one request of a batch.

    Attributes:
        index: which request, counted from 0 through the call.
        result: a result, if there is one.
        error: why the request has failed, if it has.
        last: whether nothing more follows for the request.
    """

    index: int
    result: Result | None = None
    error: Exception | None = None
    last: bool = False


async def answer_batch(
    batches: AsyncIterator[Sequence[Request]],
    answer_one: AnswerOne[Request, Result],
    start: Start[Request] | None = None,
) -> AsyncGenerator[list[Answer[Result]], None]:
    """Answer all requests of a call; yields answers, as many at a time as there are.

    Args:
        batches: what brings the requests. If it fails, those that were taken up are answered before the call fails.
        answer_one: yields the results of one request.
        start: starts those that need not be answered by `answer_one`, with one result each.
    """
    call = _Call(answer_one, start)
    reading = asyncio.ensure_future(call.read(batches))
    try:
        while answers := await call.next_answers():
            yield answers
        await reading
    finally:
        reading.cancel()
        call.cancel()
        await asyncio.wait((reading,))  # Nothing may iterate `batches` any more when the caller closes it.


class _Call(Generic[Request, Result]):
    """The running requests of a call, and their answers that have not been sent."""

    def __init__(self, answer_one: AnswerOne[Request, Result], start: Start[Request] | None) -> None:
        self._answer_one = answer_one
        self._start = start
        self._room = asyncio.Semaphore(_MAX_RUNNING)
        self._running: dict[int, Cancel] = {}  # by request
        self._refused: deque[asyncio.Future[None]] = deque()  # one for each request that waits to retry
        self._reading = True
        self._answers: list[Answer[Result]] = []  # since the last message
        self._news = asyncio.Event()  # there is an answer, or nothing is left to be answered
        self._sent = asyncio.Event()

    async def read(self, batches: AsyncIterator[Sequence[Request]]) -> None:
        """Take up requests as far as there is room."""
        index = 0
        try:
            async for batch in batches:
                requests = deque(batch)
                while requests:
                    await self._until_little_is_unsent()
                    room = await self._take_room(min(len(requests), _MAX_TAKEN))
                    self._take_up(index, [requests.popleft() for _ in range(room)])
                    index += room
        finally:
            self._reading = False
            self._news.set()

    async def next_answers(self) -> list[Answer[Result]]:
        """Wait until there is an answer and return all since the last call, in order; empty if nothing is left to be
        answered."""
        while not self._answers and (self._reading or self._running):
            self._news.clear()
            await self._news.wait()
        answers, self._answers = self._answers, []
        self._sent.set()
        return answers

    def cancel(self) -> None:
        """Cancel the running requests."""
        for cancel in self._running.values():
            cancel()

    async def _take_room(self, most: int) -> int:
        """Wait for room for a request, and take room for at most `most`."""
        await self._room.acquire()
        taken = 1
        while taken < most and not self._room.locked():
            await self._room.acquire()
            taken += 1
        return taken

    def _take_up(self, first: int, requests: list[Request]) -> None:
        """Start requests, those that need it with a task. A mistake in one of them is found again there."""
        started: Sequence[Cancel] = ()
        if self._start is not None:
            done = [partial(self._take_outcome, index) for index in range(first, first + len(requests))]
            with suppress(DomainError):
                started = self._start(requests, done)
        self._running.update(enumerate(started, first))
        for index, request in enumerate(requests[len(started) :], first + len(started)):
            task = asyncio.create_task(self._answer(index, request))
            self._running[index] = task.cancel
            task.add_done_callback(partial(self._end, index))

    async def _answer(self, index: int, request: Request) -> None:
        """Answer a request to its end, good or bad."""
        try:
            await self._answer_when_admitted(index, request)
        except Exception as error:
            self._fail(index, error)
            return
        # Most often the last answer has not been sent yet.
        if not self._answers or self._answers[-1].index != index:
            self._append(Answer(index))
        self._answers[-1].last = True

    async def _answer_when_admitted(self, index: int, request: Request) -> None:
        """Answer a request. If the queue is full it is tried again when others of the call have finished, or, if all
        of them wait for that, after a moment."""
        while True:
            try:
                async with aclosing(self._answer_one(request)) as results:
                    async for result in results:
                        await self._until_little_is_unsent()
                        self._append(Answer(index, result))
                return
            except QueueFullError:
                retry = asyncio.get_running_loop().create_future()
                self._refused.append(retry)
                none_runs = len(self._refused) == len(self._running)
                await asyncio.wait((retry,), timeout=_RETRY_SECONDS if none_runs else None)
                if not retry.done():
                    self._refused.remove(retry)

    async def _until_little_is_unsent(self) -> None:
        while len(self._answers) >= _MAX_UNSENT:
            self._sent.clear()
            await self._sent.wait()

    def _take_outcome(self, index: int, outcome: Outcome) -> None:
        try:
            self._append(Answer(index, outcome(), last=True))
        except Exception as error:
            self._fail(index, error)
        self._end(index)

    def _fail(self, index: int, error: Exception) -> None:
        if not isinstance(error, DomainError):
            _log.error("request of a batch failed", exc_info=error)
        self._append(Answer(index, error=error, last=True))

    def _append(self, answer: Answer[Result]) -> None:
        self._answers.append(answer)
        self._news.set()

    def _end(self, index: int, _task: object = None) -> None:
        del self._running[index]
        self._room.release()
        for _ in range(min(_RETRIES_PER_END, len(self._refused))):
            self._refused.popleft().set_result(None)
        if not self._running:
            self._news.set()
