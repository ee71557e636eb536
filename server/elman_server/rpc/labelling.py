"""From a model's scores to labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_protos import v1
from elman_server.errors import ModelFailedError
from elman_server.rpc.lengthy import by_length
from elman_server.rpc.models import Labelling


async def predict(labelling: Labelling, outputs: NDArray[Any], step_count: int) -> v1.Prediction:
    """Label scores [steps or 1, labels] as a prediction.

    Raises:
        ModelFailedError: they are not finite.
    """
    return await by_length(len(outputs), lambda: prediction(labelling, outputs, step_count))


def prediction(labelling: Labelling, outputs: NDArray[Any], step_count: int) -> v1.Prediction:
    """The same at once, however long it takes."""
    if not np.isfinite(outputs).all():
        raise ModelFailedError("the model's output is not finite, so it has no label")
    if labelling.every_step:
        steps = _best(labelling.labels, outputs.astype(np.float64))
        return v1.Prediction(steps=steps, step_count=step_count)
    return v1.Prediction(labels=_all(labelling.labels, outputs[0].tolist()), step_count=step_count)


def _best(names: tuple[str, ...], logits: NDArray[np.float64]) -> list[v1.LabelProbability]:
    """The most probable label of every step."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = weights.max(axis=1) / weights.sum(axis=1)
    best = logits.argmax(axis=1)
    return [
        v1.LabelProbability(label=names[label], probability=probability)
        for label, probability in zip(best.tolist(), probabilities.tolist(), strict=True)
    ]


def _all(names: tuple[str, ...], logits: list[float]) -> list[v1.LabelProbability]:
    """All labels, the most probable first. Most often they are few, for which numpy takes three times as long."""
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    total = sum(weights)
    order = sorted(range(len(names)), key=weights.__getitem__, reverse=True)  # Of equals the first stays so.
    return [v1.LabelProbability(label=names[label], probability=weights[label] / total) for label in order]
