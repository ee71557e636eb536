"""ClassifyResponse and the responses of a stream of pieces, from predictions."""

from __future__ import annotations

from elman_protos import v1
from elman_server.inference.classify import Classification
from elman_server.inference.classify_stream import PieceResult, StreamStarted
from elman_server.inference.labels import LabelProbability, Prediction
from elman_server.inference.offload import offload


async def classify_response(found: Classification) -> v1.ClassifyResponse:
    """Return the message of a classification; it is made on a thread where it is long."""
    return await offload(len(found.prediction.steps), lambda: short_classify_response(found))


def short_classify_response(found: Classification) -> v1.ClassifyResponse:
    """Return the message of a classification."""
    return v1.ClassifyResponse(
        model=found.model,
        digest=found.digest,
        prediction=_prediction(found.prediction),
        session_position=found.session_position,
        cached_token_count=found.cached_token_count,
        unknown_token_count=found.unknown_token_count,
    )


async def stream_response(event: StreamStarted | PieceResult) -> v1.StreamClassifyResponse:
    """Return the message of an event of a stream; it is made on a thread where it is long."""
    if isinstance(event, StreamStarted):
        return v1.StreamClassifyResponse(started=v1.StreamStarted(model=event.model, digest=event.digest))
    return await offload(len(event.prediction.steps), lambda: _piece_response(event))


def _piece_response(event: PieceResult) -> v1.StreamClassifyResponse:
    result = v1.PieceResult(
        prediction=_prediction(event.prediction),
        session_position=event.session_position,
        unknown_token_count=event.unknown_token_count,
    )
    return v1.StreamClassifyResponse(result=result)


def _prediction(prediction: Prediction) -> v1.Prediction:
    return v1.Prediction(
        labels=_labels(prediction.labels), steps=_labels(prediction.steps), step_count=prediction.step_count
    )


def _labels(labels: list[LabelProbability]) -> list[v1.LabelProbability]:
    return [v1.LabelProbability(label=label, probability=probability) for label, probability in labels]
