"""From a model's scores to labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman import v1
from server.rpc.errors import ModelFailedError
from server.rpc.lengthy import by_length
from server.rpc.models import Labelling


async def predict(labelling: Labelling, outputs: NDArray[Any], step_count: int) -> v1.Prediction:
    """Label scores [steps or 1, labels] as a prediction.

    Raises:
        ModelFailedError: they are not finite.
    """
    return await by_length(len(outputs), lambda: _prediction(labelling, outputs, step_count))


def _prediction(labelling: Labelling, outputs: NDArray[Any], step_count: int) -> v1.Prediction:
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
