"""The calls of elman.v1.InferenceService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
from server.rpc.validation import Limits, check_size, input_ids, piece_ids, prompt_ids, sampling_params
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

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(v1.InferenceServiceServicer):
    """Serves the models.

    A call that ends for whatever reason (its client has gone, its deadline has passed, it failed) lets its sequence
    go, whose slot is free one step later.

    Args:
        models: what there is.
        limits: what one request may ask for.
        write_timeout: seconds that a client may leave a message unread before its stream is ended.
    """

    def __init__(self, models: Models, limits: Limits, write_timeout: float) -> None:
        self._models = models
        self._limits = limits
        self._write_timeout = write_timeout

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
        generation = Generation(ids, mailbox, params=params)
        _submit(model, generation)
        try:
            started = v1.GenerateStarted(
                model=model.name,
                digest=model.bundle.digest,
                seed=params.seed,
                prompt_token_count=len(ids),
                unknown_token_count=int((ids == model.vocabulary.unknown_id).sum()),
            )
            await self._write(context, v1.GenerateResponse(started=started))
            decoder = model.vocabulary.decoder()
            count = 0
            while True:
                new, end = _split(await mailbox.gather())
                count += len(new)
                text = decoder.decode(new, final=end is not None)
                if new or text:
                    chunk = v1.GenerateChunk(text=text, token_ids=new)
                    await self._write(context, v1.GenerateResponse(chunk=chunk))
                if end is not None:
                    finished = v1.GenerateFinished(
                        finish_reason=_FINISH_REASONS[end.reason], generated_token_count=count
                    )
                    return await self._write(context, v1.GenerateResponse(finished=finished))
        finally:
            model.scheduler.abort(generation)

    async def Classify(self, request: v1.ClassifyRequest, context: Context) -> v1.ClassifyResponse:
        check_size(request, self._limits)
        model, labelling = self._models.that_labels(request.model, "model")
        ids = input_ids(request, model, self._limits)
        finished = await _read(model, Reading(ids, Mailbox(), every_step=labelling.every_step))
        prediction = _prediction(labelling, finished.outputs, len(ids))
        return v1.ClassifyResponse(model=model.name, digest=model.bundle.digest, prediction=prediction)

    async def StreamClassify(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.StreamClassifyRequest], context: Context
    ) -> None:
        model: ServedModel | None = None
        state: Arrays | None = None
        latest = v1.Prediction()
        async for request in requests:
            check_size(request, self._limits)
            if model is None:
                if not request.HasField("config"):
                    raise FieldError("config", "is missing: the first message of a stream is its config")
                model, labelling = self._models.that_labels(request.config.model, "config.model")
                started = v1.StreamStarted(model=model.name, digest=model.bundle.digest)
                await self._write(context, v1.StreamClassifyResponse(started=started))
                continue
            if not request.HasField("piece"):
                raise FieldError("piece", "is missing: every message but the first is a piece")
            ids = piece_ids(request.piece, model, self._limits)
            steps = latest.step_count + len(ids)
            if len(ids):
                reading = Reading(ids, Mailbox(), state, every_step=labelling.every_step, keep_state=True)
                finished = await _read(model, reading)
                state = finished.state
                latest = _prediction(labelling, finished.outputs, steps)
            elif labelling.every_step:
                latest = v1.Prediction(step_count=steps)
            await self._write(context, v1.StreamClassifyResponse(result=v1.PieceResult(prediction=latest)))

    async def _write(self, context: Context, message: Any) -> None:
        """Send a message; a client that does not read is given up on."""
        try:
            async with asyncio.timeout(self._write_timeout):
                await context.write(message)
        except TimeoutError as error:
            raise ClientTooSlowError(
                f"the client has read nothing for {self._write_timeout:g} seconds", seconds=self._write_timeout
            ) from error


def _submit(model: ServedModel, sequence: Sequence) -> None:
    try:
        model.scheduler.submit(sequence)
    except QueueFullError as error:
        limit = model.scheduler.waiting_limit
        message = f"{limit} requests wait for {model.name!r} already, as many as may: try again later"
        raise QueueFullRequestError(message, limit=limit) from error
    except SchedulerStoppedError as error:
        raise ServerDrainingError("the server is shutting down") from error


async def _read(model: ServedModel, reading: Reading) -> ReadingFinished:
    """Run a reading to its end."""
    assert isinstance(reading.receiver, Mailbox)
    _submit(model, reading)
    try:
        (event,) = await reading.receiver.gather()
    finally:
        model.scheduler.abort(reading)
    if isinstance(event, Failed):
        raise _request_error(event.error)
    assert isinstance(event, ReadingFinished)
    return event


def _split(events: list[Event]) -> tuple[list[int], Finished | None]:
    """The tokens among a generation's events, and its end if it is there.

    Raises:
        RequestError: the generation has failed.
    """
    tokens: list[int] = []
    for event in events:
        if isinstance(event, Tokens):
            tokens.extend(event.ids)
        elif isinstance(event, Finished):
            return tokens, event
        elif isinstance(event, Failed):
            raise _request_error(event.error)
    return tokens, None


def _request_error(error: Exception) -> RequestError:
    if isinstance(error, SchedulerStoppedError):
        return ServerDrainingError("the server is shutting down")
    if isinstance(error, SequenceFailedError):
        return ModelFailedError(str(error))
    return UnexpectedError("internal error")


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
