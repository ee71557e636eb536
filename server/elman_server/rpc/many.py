"""Many requests in one call: they run side by side, and what there is to tell of them shares messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from elman_protos import v1
from elman_server.errors import DomainError, QueueFullError
from elman_server.rpc.transport.statuses import wire_status
from elman_server.rpc.writing import grouped

_UNDER_WAY = 256  # requests of one call
_AT_ONCE = 16  # are taken up without a turn for others
_COME_AGAIN = 2  # for one that has ended: one would never become two
_PAUSE = 0.01  # seconds
_UNSENT = 1024  # answers; whoever has more to tell waits until the client has read some
_MESSAGE_BYTES = 256 * 1024  # about

_log = structlog.get_logger(__name__)

Tell = Callable[[Any], Awaitable[None]]  # tells a response
AnswerOne = Callable[[Any, Tell], Awaitable[None]]  # answers a request to its end
LetGo = Callable[[], object]  # ends what is under way
Outcome = Callable[[], Any]  # gives a response, or raises what kept it from coming
# Takes up requests so that they run without a task each, which for a short one costs more than the model does. It is
# given them, and what is to be called on the event loop with the outcome of each; it takes up the first ones, as many
# as it can, and gives what lets those go. Where something is wrong with one it may raise, having taken up none.
Begin = Callable[[Sequence[Any], Sequence[Callable[[Outcome], None]]], Sequence[LetGo]]


@dataclass(frozen=True)
class Kind:
    """What the requests are.

    Attributes:
        answer: the message that brings a response to one of them, or its failure.
        message: the one that brings several answers.
        streams: whether a request may have several answers, so that it has to be told which is the last.
    """

    answer: Callable[..., Any]
    message: Callable[..., Any]
    streams: bool


GENERATION = Kind(v1.GenerateAnswer, v1.GenerateManyResponse, streams=True)
CLASSIFICATION = Kind(v1.ClassifyAnswer, v1.ClassifyManyResponse, streams=False)


async def answer_many(
    messages: AsyncIterator[Any], answer_one: AnswerOne, kind: Kind, write: Tell, begin: Begin | None = None
) -> None:
    """Answer all requests of a call.

    Args:
        messages: what brings them. Where it fails, those that were taken up are answered before the call fails.
        answer_one: answers one of them.
        kind: what they are.
        write: sends a message.
        begin: takes up those that need not be answered by `answer_one`; for kinds with one answer.
    """
    call = _Call(answer_one, kind, begin)
    reading = asyncio.ensure_future(call.read(messages))
    try:
        while answers := await call.gather():
            for group in grouped(answers, _MESSAGE_BYTES):
                await write(kind.message(answers=group))
        await reading
    finally:
        reading.cancel()
        call.cancel()


class _Call:
    """The requests under way, and what there is to tell of them."""

    def __init__(self, answer_one: AnswerOne, kind: Kind, begin: Begin | None) -> None:
        self._answer_one = answer_one
        self._kind = kind
        self._begin = begin
        self._room = asyncio.Semaphore(_UNDER_WAY)
        self._under_way: dict[int, LetGo] = {}  # by request
        self._refused: deque[asyncio.Future[None]] = deque()  # one for each that waits for room
        self._reading = True
        self._answers: list[Any] = []  # since the last message
        self._news = asyncio.Event()  # there is an answer, or nothing is left to be answered
        self._sent = asyncio.Event()

    async def read(self, messages: AsyncIterator[Any]) -> None:
        """Take up what comes, as far as there is room."""
        index = 0
        try:
            async for message in messages:
                requests = deque(message.requests)
                while requests:
                    await self._until_there_is_little_unsent()
                    room = await self._take_room(min(len(requests), _AT_ONCE))
                    self._take_up(index, [requests.popleft() for _ in range(room)])
                    index += room
        finally:
            self._reading = False
            self._news.set()

    async def gather(self) -> list[Any]:
        """All answers since the last call, in order; waits until there is one. None: nothing is left to be answered."""
        while not self._answers and (self._reading or self._under_way):
            self._news.clear()
            await self._news.wait()
        answers, self._answers = self._answers, []
        self._sent.set()
        return answers

    def cancel(self) -> None:
        """Let go what is under way."""
        for let_go in self._under_way.values():
            let_go()

    async def _take_room(self, most: int) -> int:
        """Wait for room for a request, and take what there is for so many."""
        await self._room.acquire()
        taken = 1
        while taken < most and not self._room.locked():
            await self._room.acquire()
            taken += 1
        return taken

    def _take_up(self, first: int, requests: list[Any]) -> None:
        """Take up requests, those that need it with a task. Whatever is wrong with one of them is found again there."""
        begun: Sequence[LetGo] = ()
        if self._begin:
            ends = [partial(self._tell_outcome, index) for index in range(first, first + len(requests))]
            with contextlib.suppress(DomainError):
                begun = self._begin(requests, ends)
        self._under_way.update(enumerate(begun, first))
        for index, request in enumerate(requests[len(begun) :], first + len(begun)):
            task = asyncio.create_task(self._answer(index, request))
            self._under_way[index] = task.cancel
            task.add_done_callback(partial(self._end, index))

    async def _answer(self, index: int, request: Any) -> None:
        """Answer a request to its end, good or bad."""

        async def tell(response: Any) -> None:
            await self._until_there_is_little_unsent()
            self._tell(self._kind.answer(request_index=index, response=response))

        try:
            await self._answer_when_there_is_room(request, tell)
        except Exception as error:
            self._tell_failure(index, error)
        if self._kind.streams:
            # Most often the last answer has not been sent yet.
            unsent = self._answers and self._answers[-1].request_index == index
            if not unsent:
                self._tell(self._kind.answer(request_index=index))
            self._answers[-1].last = True

    async def _answer_when_there_is_room(self, request: Any, tell: Tell) -> None:
        """Answer a request. One for which there is no room comes again when others of the call have ended, or, where
        all of them wait for room, after a moment."""
        while True:
            try:
                await self._answer_one(request, tell)
            except QueueFullError:
                waiter = asyncio.get_running_loop().create_future()
                self._refused.append(waiter)
                nobody_runs = len(self._refused) == len(self._under_way)
                await asyncio.wait((waiter,), timeout=_PAUSE if nobody_runs else None)
                if not waiter.done():
                    self._refused.remove(waiter)
            else:
                return

    async def _until_there_is_little_unsent(self) -> None:
        while len(self._answers) >= _UNSENT:
            self._sent.clear()
            await self._sent.wait()

    def _tell_outcome(self, index: int, outcome: Outcome) -> None:
        try:
            self._tell(self._kind.answer(request_index=index, response=outcome()))
        except Exception as error:
            self._tell_failure(index, error)
        self._end(index)

    def _tell_failure(self, index: int, error: Exception) -> None:
        if not isinstance(error, DomainError):
            _log.error("a request among many failed", exc_info=error)
        self._tell(self._kind.answer(request_index=index, failure=_failure(error)))

    def _tell(self, answer: Any) -> None:
        self._answers.append(answer)
        self._news.set()

    def _end(self, index: int, _task: object = None) -> None:
        del self._under_way[index]
        self._room.release()
        for _ in range(min(_COME_AGAIN, len(self._refused))):
            self._refused.popleft().set_result(None)
        if not self._under_way:
            self._news.set()


def _failure(error: Exception) -> v1.Failure:
    status = wire_status(error)
    return v1.Failure(code=status.code, message=status.message, details=status.details)
