"""The calls of elman.v1.InferenceService."""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from elman_protos import v1
from elman_server.engine import Arrays
from elman_server.errors import InvalidFieldError, ModelUnsuitableError, QueueFullError, ServerDrainingError, shortened
from elman_server.rpc.callers import Context, caller_of
from elman_server.rpc.choosing import choose, requested_choices
from elman_server.rpc.compiling import Compiling
from elman_server.rpc.generate_calls import GenerateCalls
from elman_server.rpc.labelling import predict
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.many import CLASSIFICATION, GENERATION, AnswerOne, Begin, Kind, LetGo, Outcome, Tell, answer_many
from elman_server.rpc.models import Labelling, Models, ServedModel
from elman_server.rpc.prefill import Prefill
from elman_server.rpc.reading import run_reading
from elman_server.rpc.tree_calls import begin_trees, classify_tree
from elman_server.rpc.validation import (
    Limits,
    check_request_id,
    check_size,
    checked_source,
    fingerprint,
    input_steps,
    piece_steps,
    prompt_ids,
    requested_source,
    session_target,
)
from elman_server.rpc.writing import Writer
from elman_server.scheduling import Reading
from elman_server.sessions import TOKEN_TYPE, PrefixCache, Sessions, Target

# What a piece shows: the outputs of its steps or of the last one, and the position of its session, if it has one.
PieceReader = Callable[[v1.Piece, NDArray[Any]], Awaitable[tuple[NDArray[Any], int | None]]]
_Request = TypeVar("_Request", bound=Message)


class InferenceServicer(v1.InferenceServiceServicer):
    """Serves the models.

    A call that ends for whatever reason (its client has gone, its deadline has passed, it failed) lets its sequence
    go, whose slot is free after the chunk under way.

    Args:
        models: what there is.
        sessions: what calls may continue.
        prefixes: states behind prompts that have been read before.
        compiling: what compiles constraints.
        limits: what one request may ask for.
        writer: sends messages.
        draining: set when the server shuts down.
    """

    def __init__(
        self,
        models: Models,
        sessions: Sessions,
        prefixes: PrefixCache,
        compiling: Compiling,
        limits: Limits,
        writer: Writer,
        draining: asyncio.Event,
    ) -> None:
        self._generate_calls = GenerateCalls(models, sessions, prefixes, compiling, limits)
        self._models = models
        self._sessions = sessions
        self._prefixes = prefixes
        self._limits = limits
        self._writer = writer
        self._draining = draining
        self._open_streams: Counter[str] = Counter()

    async def ListModels(self, request: v1.ListModelsRequest, context: Context) -> v1.ListModelsResponse:
        return v1.ListModelsResponse(models=[self._shown(model) for model in self._models])

    async def GetModel(self, request: v1.GetModelRequest, context: Context) -> v1.GetModelResponse:
        return v1.GetModelResponse(model=self._shown(self._models.named(request.name, "name")))

    def _shown(self, model: ServedModel) -> v1.Model:
        shown, worth = model.to_proto(), self._prefixes.statistics(model.bundle.digest)
        shown.prefix_cache.lookup_count = worth.lookups
        shown.prefix_cache.hit_count = worth.hits
        shown.prefix_cache.saved_step_count = worth.saved_steps
        return shown

    async def Generate(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, request: v1.GenerateRequest, context: Context
    ) -> None:
        check_size(request, self._limits)
        await self._generate_calls.answer(request, caller_of(context), partial(self._writer.write, context))

    async def GenerateMany(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.GenerateManyRequest], context: Context
    ) -> None:
        caller = caller_of(context)

        async def generate(request: v1.GenerateRequest, tell: Tell) -> None:
            await self._generate_calls.answer(request, caller, tell)

        await self._answer_many(requests, context, generate, GENERATION)

    async def ClassifyMany(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.ClassifyManyRequest], context: Context
    ) -> None:
        caller = caller_of(context)

        async def classify(request: v1.ClassifyRequest, tell: Tell) -> None:
            await tell(await self._classified(request, caller))

        def begin(requests: Sequence[v1.ClassifyRequest], ends: Sequence[Callable[[Outcome], None]]) -> list[LetGo]:
            name = requests[0].model
            if any(request.model != name or request.HasField("session") for request in requests):
                return []
            model, labelling = self._models.that_labels(name, "model")
            return begin_trees(requests, model, labelling, ends) if model.reads_trees else []

        await self._answer_many(requests, context, classify, CLASSIFICATION, begin)

    async def _answer_many(
        self,
        requests: AsyncIterator[Any],
        context: Context,
        answer_one: AnswerOne,
        kind: Kind,
        begin: Begin | None = None,
    ) -> None:
        async with contextlib.aclosing(self._messages(requests)) as messages:
            await answer_many(messages, answer_one, kind, partial(self._writer.write, context), begin)

    async def Choose(self, request: v1.ChooseRequest, context: Context) -> v1.ChooseResponse:
        check_size(request, self._limits)
        model = self._models.that_generates(request.model)
        source = await requested_source(request, model, self._limits)
        ids = await prompt_ids(request, model, self._limits)
        choices = await requested_choices(request, model, self._limits)
        bypass = request.bypass_prefix_cache
        prompt = Prefill.begin(model, ids, self._prefixes, caller_of(context), bypass=bypass, source=source)
        await prompt.read_all_but_one()
        return await choose(prompt, ids, choices)

    async def Classify(self, request: v1.ClassifyRequest, context: Context) -> v1.ClassifyResponse:
        check_size(request, self._limits)
        return await self._classified(request, caller_of(context))

    async def _classified(self, request: v1.ClassifyRequest, caller: str) -> v1.ClassifyResponse:
        target = session_target(request) if request.HasField("session") else None
        name = request.model or (await self._sessions.model_of(target.session_id) if target else "")
        model, labelling = self._models.that_labels(name, "model")
        read_session = partial(self._sessions.calls.read, model.for_sessions, target) if target else None
        if model.reads_trees:
            return await classify_tree(request, model, labelling)
        steps = await input_steps(request, model, self._limits)
        response = v1.ClassifyResponse(model=model.name, digest=model.bundle.digest)
        every_step = labelling.every_step
        if read_session:
            found = await read_session(array(TOKEN_TYPE, steps.tolist()), every_step=every_step)
            outputs, response.session_position = found.outputs, found.end
        elif model.reads_source_only:
            source = checked_source(steps, request.WhichOneof("input") or "text", model)
            reading = Reading(np.zeros(1, np.int64), Mailbox(), source=source, every_step=False)
            outputs = (await run_reading(model, reading)).outputs
        elif every_step or model.reads_numbers:
            outputs = (await run_reading(model, Reading(steps, Mailbox(), every_step=every_step))).outputs
        else:
            bypass = request.bypass_prefix_cache
            prefill = Prefill.begin(model, steps, self._prefixes, caller, bypass=bypass, output_wanted=True)
            response.cached_token_count = prefill.position
            outputs = await prefill.last_output()
        response.prediction.CopyFrom(await predict(labelling, outputs, len(steps)))
        return response

    async def StreamClassify(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.StreamClassifyRequest], context: Context
    ) -> None:
        async with contextlib.aclosing(self._messages(requests)) as messages:
            first = await anext(messages, None)
            if first is None or not first.HasField("config"):
                raise InvalidFieldError("config", "none", "the first message of a stream is its config")
            config = first.config
            target = session_target(config, "config.session") if config.HasField("session") else None
            if target and target.request_id:
                raise InvalidFieldError(
                    "config.session.request_id",
                    repr(shortened(target.request_id)),
                    "every piece is a call of its own",
                    "Set piece.request_id",
                )
            name = config.model or (await self._sessions.model_of(target.session_id) if target else "")
            model, labelling = self._models.that_labels(name, "config.model")
            if model.reads_trees:
                raise ModelUnsuitableError("config.model", repr(model.name), "it reads whole trees", "Use Classify")
            if model.reads_source_only:
                raise ModelUnsuitableError(
                    "config.model", repr(model.name), "it reads its whole input at once", "Use Classify"
                )
            read = self._in_session(model, labelling, target) if target else _in_stream(model, labelling)
            with self._open_stream(model):
                started = v1.StreamStarted(model=model.name, digest=model.bundle.digest)
                await self._writer.write(context, v1.StreamClassifyResponse(started=started))
                async for result in self._results(messages, model, labelling, read):
                    await self._writer.write(context, v1.StreamClassifyResponse(result=result))

    async def _results(
        self,
        messages: AsyncIterator[v1.StreamClassifyRequest],
        model: ServedModel,
        labelling: Labelling,
        read: PieceReader,
    ) -> AsyncIterator[v1.PieceResult]:
        """One result for every piece, the state kept between them."""
        latest = v1.PieceResult()
        async for message in messages:
            if not message.HasField("piece"):
                raise InvalidFieldError("piece", "none", "every message after the first is a piece")
            steps = await piece_steps(message.piece, model, self._limits)
            count = latest.prediction.step_count + len(steps)
            if len(steps):
                outputs, position = await read(message.piece, steps)
                latest = v1.PieceResult(prediction=await predict(labelling, outputs, count), session_position=position)
            elif labelling.every_step:
                latest.prediction.CopyFrom(v1.Prediction(step_count=count))
            yield latest

    def _in_session(self, model: ServedModel, labelling: Labelling, target: Target) -> PieceReader:
        """Reads pieces on a session, each behind the one before."""
        expected, kept = target.position, model.for_sessions

        async def read(piece: v1.Piece, steps: NDArray[Any]) -> tuple[NDArray[Any], int | None]:
            nonlocal expected
            check_request_id(piece.request_id, "piece.request_id")
            this = replace(target, position=expected, request_id=piece.request_id, fingerprint=fingerprint(piece))
            tokens = array(TOKEN_TYPE, steps.tolist())
            found = await self._sessions.calls.read(kept, this, tokens, every_step=labelling.every_step, always=True)
            expected = found.end
            return found.outputs, found.end

        return read

    async def _messages(self, requests: AsyncIterator[_Request]) -> AsyncGenerator[_Request, None]:
        """The requests of a stream, each of a size that may be; none more when the server drains."""
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
                check_size(request, self._limits)
                yield request
                following = asyncio.ensure_future(_following(requests))
        finally:
            following.cancel()
            draining.cancel()

    @contextlib.contextmanager
    def _open_stream(self, model: ServedModel) -> Iterator[None]:
        """Count a stream of pieces while it is open. Its pieces are not refused one by one, so the streams are."""
        limit = model.scheduler.slot_count + model.scheduler.waiting_limit
        if self._open_streams[model.name] >= limit:
            raise QueueFullError(f"open stream of {model.name!r}", limit)
        self._open_streams[model.name] += 1
        try:
            yield
        finally:
            self._open_streams[model.name] -= 1


def _in_stream(model: ServedModel, labelling: Labelling) -> PieceReader:
    """Reads the pieces of a stream that belongs to no session."""
    state: Arrays | None = None

    async def read(piece: v1.Piece, steps: NDArray[Any]) -> tuple[NDArray[Any], int | None]:
        nonlocal state
        reading = Reading(steps, Mailbox(), state, every_step=labelling.every_step, keep_state=True)
        finished = await run_reading(model, reading, always=True)
        state = finished.state
        return finished.outputs, None

    return read


async def _following(requests: AsyncIterator[_Request]) -> _Request | None:
    return await anext(aiter(requests), None)
