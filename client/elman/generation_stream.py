"""A generation in progress, as a stream of chunks that survives lost connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from elman.errors import ElmanError, rpc_errors
from elman.generation_results import Chunk, FinishReason, Usage, reports_of, usage_of
from elman.session_retries import RetryBudget, position_of
from elman_protos import v1


class GenerationStream:
    """A generation in progress: iterate over it for its chunks.

    Attributes:
        model: the model's name; "" before the first chunk.
        digest: the digest of the model's bundle; "" before the first chunk.
        seed: the seed in use; with it the same request gives the same text.
        prompt_token_count: the number of prompt tokens.
        unknown_token_count: the number of prompt tokens that are unknown to the vocabulary.
        source_unknown_count: the number of positions of the source that are unknown to the encoder's vocabulary.
        cached_token_count: the number of prompt tokens that were not read, because the state after them was cached.
        finish_reason: why the generation ended; None before it has.
        stop_sequence: the stop sequence that ended it, or "".
        held_text: in a session, text that was held back at the end, because the next call may complete a character or a
            stop sequence. The text of the next call begins with what becomes of it, unless that has a prompt.
        usage: what it used; None before its end, and for a result that was replayed from a session's record.
        generated_token_count: the number of generated tokens; 0 before its end.
        session_position_before: the position of the session before the call; None before the first chunk.
        session_position: the position of the session after the call; None before its end.
        request_id: identifies the call within its session for retries; "" if it has no id.
        received_token_count: the number of tokens received, with those that the caller already had.
    """

    def __init__(
        self,
        start: Callable[[int], grpc.aio.UnaryStreamCall[Any, v1.GenerateResponse]],
        address: str,
        budget: RetryBudget,
        *,
        request_id: str = "",
        received_token_count: int = 0,
    ) -> None:
        """Start the generation.

        Args:
            start: starts the call after a number of tokens.
            address: the server's address, for errors.
            budget: the time for which a broken call is retried.
            request_id: as above.
            received_token_count: the number of tokens that the caller already has.
        """
        self._start = start
        self._address = address
        self._budget = budget
        self._cancelled = asyncio.Event()
        self.model = ""
        self.digest = ""
        self.seed = 0
        self.prompt_token_count = 0
        self.unknown_token_count = 0
        self.source_unknown_count = 0
        self.cached_token_count = 0
        self.finish_reason: FinishReason | None = None
        self.stop_sequence = ""
        self.held_text = ""
        self.usage: Usage | None = None
        self.generated_token_count = 0
        self.session_position_before: int | None = None
        self.session_position: int | None = None
        self.request_id = request_id
        self.received_token_count = received_token_count
        self._call = start(received_token_count)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            while (response := await self._next()) is not None:
                self._update(response)
                if response.HasField("chunk"):
                    chunk = response.chunk
                    yield Chunk(chunk.text, tuple(chunk.token_ids), reports_of(chunk))
        except asyncio.CancelledError:
            # grpc.aio also raises this when the call was cancelled; then it is the end and not a cancelled task.
            task = asyncio.current_task()
            if not self._cancelled.is_set() or (task is not None and task.cancelling()):
                raise
        finally:
            self.cancel()

    async def _next(self) -> v1.GenerateResponse | None:
        """The next response; None after the last one. A broken call is started again."""
        while True:
            try:
                with rpc_errors(self._address):
                    return await anext(aiter(self._call), None)
            except ElmanError as error:
                await self._wait(self._budget.pause_after(error))
            if self._cancelled.is_set():
                return None
            self._call = self._start(self.received_token_count)

    async def _wait(self, seconds: float) -> None:
        """Wait until the time has passed or the generation is cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._cancelled.wait()

    def _update(self, response: v1.GenerateResponse) -> None:
        if response.HasField("started"):
            started = response.started
            self.model, self.digest, self.seed = started.model, started.digest, started.seed
            self.prompt_token_count = started.prompt_token_count
            self.unknown_token_count = started.unknown_token_count
            self.source_unknown_count = started.source_unknown_count
            self.cached_token_count = started.cached_token_count
            self.session_position_before = position_of(started)
        if response.HasField("finished"):
            self.finish_reason = FinishReason(response.finished.finish_reason)
            self.stop_sequence = response.finished.stop_sequence
            self.held_text = response.finished.held_text
            self.usage = usage_of(response.finished)
            self.generated_token_count = response.finished.generated_token_count
            self.session_position = position_of(response.finished)
        if response.chunk.token_ids:
            self.received_token_count += len(response.chunk.token_ids)
            self._budget.renew()

    async def text(self) -> str:
        """Wait for the end and return the whole text.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        return "".join([chunk.text async for chunk in self])

    def cancel(self) -> None:
        """End the generation: the loop over it ends without an error and without a finish_reason.

        Leaving the loop has the same effect. After the end, this does nothing.
        """
        self._cancelled.set()
        self._call.cancel()
