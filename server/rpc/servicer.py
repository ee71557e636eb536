"""The calls of elman.v1.InferenceService."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from elman import v1
from server.engine import Arrays
from server.rpc.errors import (
    ClientTooSlowError,
    FieldError,
    ModelFailedError,
    QueueFullRequestError,
    RequestError,
    ServerDrainingError,
    UnexpectedError,
)
from server.rpc.mailbox import Mailbox
from server.rpc.models import Labelling, Models, ServedModel
from server.rpc.validation import (
    Limits,
    check_size,
    delivery_interval,
    input_ids,
    piece_ids,
    prompt_ids,
    sampling_params,
)
from server.scheduling import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    QueueFullError,
    Reading,
    ReadingFinished,
    SchedulerStoppedError,
    Sequence,
    SequenceFailedError,
    Tokens,
)

_FINISH_REASONS = {
    FinishReason.MAX_TOKENS: v1.FINISH_REASON_MAX_TOKENS,
    FinishReason.END_TOKEN: v1.FINISH_REASON_END_TOKEN,
}

# So many labels take milliseconds to write down, which the other clients shall not wait for.
_LONG = 2000

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(v1.InferenceServiceServicer):
    """Serves the models.

    A call that ends for whatever reason (its client has gone, its deadline has passed, it failed) lets its sequence
    go, whose slot is free after the chunk under way.

    Args:
        models: what there is.
        limits: what one request may ask for.
        write_timeout: seconds that a client may leave a message unread before its stream is ended.
        draining: set when the server shuts down.
    """

    def __init__(self, models: Models, limits: Limits, write_timeout: float, draining: asyncio.Event) -> None:
        self._models = models
        self._limits = limits
        self._write_timeout = write_timeout
        self._draining = draining
        self._open_streams: Counter[str] = Counter()

    async def ListModels(self, request: v1.ListModelsRequest, context: Context) -> v1.ListModelsResponse:
        return v1.ListModelsResponse(models=[model.to_proto() for model in self._models])

    async def GetModel(self, request: v1.GetModelRequest, context: Context) -> v1.GetModelResponse:
        return v1.GetModelResponse(model=self._models.named(request.name, "name").to_proto())

    async def Generate(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, request: v1.GenerateRequest, context: Context
    ) -> None:
        check_size(request, self._limits)
        model = self._models.that_generates(request.model)
        params = sampling_params(request, model, self._limits)
        ids = prompt_ids(request, model, self._limits)
        mailbox = Mailbox()
        generation = Generation(ids, mailbox, params=params, interval=delivery_interval(request))
        _submit(model, generation)
        response = v1.GenerateResponse()
        response.started.model = model.name
        response.started.digest = model.bundle.digest
        response.started.seed = params.seed
        response.started.prompt_token_count = len(ids)
        response.started.unknown_token_count = model.count_unknown(ids)
        single = request.HasField("single_tokens")
        try:
            decoder = model.vocabulary.decoder()
            count = 0
            end: Event | None = None
            while end is None:
                new, end = _split(await mailbox.gather())
                count += len(new)
                while new:
                    part, new = (new[:1], new[1:]) if single else (new, [])
                    response.chunk.token_ids.extend(part)
                    response.chunk.text = decoder.decode(part, final=bool(end) and not new)
                    if new or not isinstance(end, Finished):
                        await self._write(context, response)
                        response = v1.GenerateResponse()
            if isinstance(end, Failed):
                raise _request_error(end.error)
            assert isinstance(end, Finished)
            response.finished.finish_reason = _FINISH_REASONS[end.reason]
            response.finished.generated_token_count = count
            text = "" if response.HasField("chunk") else decoder.decode([], final=True)
            if text:  # Bytes that became no whole character.
                response.chunk.text = text
            await self._write(context, response)
        finally:
            model.scheduler.abort(generation)

    async def Classify(self, request: v1.ClassifyRequest, context: Context) -> v1.ClassifyResponse:
        check_size(request, self._limits)
        model, labelling = self._models.that_labels(request.model, "model")
        ids = input_ids(request, model, self._limits)
        finished = await _read(model, Reading(ids, Mailbox(), every_step=labelling.every_step))
        prediction = await _predict(labelling, finished.outputs, len(ids))
        return v1.ClassifyResponse(model=model.name, digest=model.bundle.digest, prediction=prediction)

    async def StreamClassify(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.StreamClassifyRequest], context: Context
    ) -> None:
        async with contextlib.aclosing(self._messages(requests)) as messages:
            first = await anext(messages, None)
            if first is None or not first.HasField("config"):
                raise FieldError("config", "is missing: the first message of a stream is its config")
            model, labelling = self._models.that_labels(first.config.model, "config.model")
            with self._open_stream(model):
                started = v1.StreamStarted(model=model.name, digest=model.bundle.digest)
                await self._write(context, v1.StreamClassifyResponse(started=started))
                async for prediction in self._predictions(messages, model, labelling):
                    result = v1.PieceResult(prediction=prediction)
                    await self._write(context, v1.StreamClassifyResponse(result=result))

    async def _predictions(
        self, messages: AsyncIterator[v1.StreamClassifyRequest], model: ServedModel, labelling: Labelling
    ) -> AsyncIterator[v1.Prediction]:
        """One prediction for every piece, the state kept between them."""
        state: Arrays | None = None
        latest = v1.Prediction()
        async for message in messages:
            if not message.HasField("piece"):
                raise FieldError("piece", "is missing: every message but the first is a piece")
            ids = piece_ids(message.piece, model, self._limits)
            steps = latest.step_count + len(ids)
            if len(ids):
                reading = Reading(ids, Mailbox(), state, every_step=labelling.every_step, keep_state=True)
                finished = await _read(model, reading, always=True)
                state = finished.state
                latest = await _predict(labelling, finished.outputs, steps)
            elif labelling.every_step:
                latest = v1.Prediction(step_count=steps)
            yield latest

    async def _messages(
        self, requests: AsyncIterator[v1.StreamClassifyRequest]
    ) -> AsyncGenerator[v1.StreamClassifyRequest, None]:
        """The requests of a stream, each of a size that may be; none more when the server drains."""
        draining = asyncio.ensure_future(self._draining.wait())
        following = asyncio.ensure_future(_following(requests))
        try:
            while True:
                await asyncio.wait((following, draining), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise ServerDrainingError("the server is shutting down")
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
            raise QueueFullRequestError(f"{limit} streams of {model.name!r} are open, as many as may be", limit=limit)
        self._open_streams[model.name] += 1
        try:
            yield
        finally:
            self._open_streams[model.name] -= 1

    async def _write(self, context: Context, message: Any) -> None:
        """Send a message; a client that does not read is given up on."""
        try:
            async with asyncio.timeout(self._write_timeout):
                await context.write(message)
        except TimeoutError as error:
            raise ClientTooSlowError(
                f"the client has read nothing for {self._write_timeout:g} seconds", seconds=self._write_timeout
            ) from error


def _submit(model: ServedModel, sequence: Sequence, *, always: bool = False) -> None:
    try:
        model.scheduler.submit(sequence, always=always)
    except QueueFullError as error:
        limit = model.scheduler.waiting_limit
        message = f"{limit} requests wait for {model.name!r} already, as many as may: try again later"
        raise QueueFullRequestError(message, limit=limit) from error
    except SchedulerStoppedError as error:
        raise ServerDrainingError("the server is shutting down") from error


async def _read(model: ServedModel, reading: Reading, *, always: bool = False) -> ReadingFinished:
    """Run a reading to its end."""
    assert isinstance(reading.receiver, Mailbox)
    _submit(model, reading, always=always)
    try:
        (event,) = await reading.receiver.gather()
    finally:
        model.scheduler.abort(reading)
    if isinstance(event, Failed):
        raise _request_error(event.error)
    assert isinstance(event, ReadingFinished)
    return event


def _split(events: list[Event]) -> tuple[list[int], Event | None]:
    """The tokens among a generation's events, and its end, good or bad, if it is there."""
    tokens: list[int] = []
    for event in events:
        if not isinstance(event, Tokens):
            return tokens, event
        tokens.extend(event.ids)
    return tokens, None


async def _following(requests: AsyncIterator[v1.StreamClassifyRequest]) -> v1.StreamClassifyRequest | None:
    return await anext(aiter(requests), None)


def _request_error(error: Exception) -> RequestError:
    if isinstance(error, SchedulerStoppedError):
        return ServerDrainingError("the server is shutting down")
    if isinstance(error, SequenceFailedError):
        return ModelFailedError(str(error))
    return UnexpectedError("internal error")


async def _predict(labelling: Labelling, outputs: NDArray[Any], step_count: int) -> v1.Prediction:
    if len(outputs) < _LONG:
        return _prediction(labelling, outputs, step_count)
    return await asyncio.to_thread(_prediction, labelling, outputs, step_count)


def _prediction(labelling: Labelling, outputs: NDArray[Any], step_count: int) -> v1.Prediction:
    """Label scores [steps or 1, labels] as a prediction."""
    logits = outputs.astype(np.float64)
    if not np.isfinite(logits).all():
        raise ModelFailedError("the model's output is not finite, so it has no label")
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    names = labelling.labels
    if labelling.every_step:
        best = probabilities.argmax(axis=1)
        chosen = probabilities[np.arange(len(best)), best]
        steps = [
            v1.LabelProbability(label=names[label], probability=probability)
            for label, probability in zip(best.tolist(), chosen.tolist(), strict=True)
        ]
        return v1.Prediction(steps=steps, step_count=step_count)
    order = np.argsort(-probabilities[0], kind="stable")
    labels = [v1.LabelProbability(label=names[label], probability=probabilities[0, label]) for label in order.tolist()]
    return v1.Prediction(labels=labels, step_count=step_count)
