"""From the logits of a model to labels and their probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.errors import ModelFailedError
from elman_server.inference.offload import offload

LabelProbability = tuple[str, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Labels of an input; one of the two lists is empty.

    Attributes:
        labels: of a classifier: every label with its probability, the most probable first.
        steps: of a tagger: the most probable label of each step; of a tree: of each node.
        step_count: number of steps that were read.
    """

    labels: list[LabelProbability]
    steps: list[LabelProbability]
    step_count: int


async def predict(names: tuple[str, ...], logits: NDArray[Any], step_count: int, *, every_step: bool) -> Prediction:
    """`prediction_of`, on a thread where the input is long."""
    return await offload(len(logits), lambda: prediction_of(names, logits, step_count, every_step=every_step))


def prediction_of(names: tuple[str, ...], logits: NDArray[Any], step_count: int, *, every_step: bool) -> Prediction:
    """Return the labels that logits stand for.

    Args:
        names: the labels in the order of their ids.
        logits: [steps, labels] if each step has a label of its own, else [1, labels].
        step_count: number of steps that were read.
        every_step: whether each step has a label of its own.

    Raises:
        ModelFailedError: a step has no logit that is finite, or one that is NaN or infinite. A logit of -inf, by which
            models exclude a label, is a probability of 0.
    """
    if not (logits < np.inf).all() or not np.isfinite(logits).any(axis=-1).all():
        raise ModelFailedError("the model's output is not finite, so it has no label")
    if every_step:
        return Prediction([], _most_probable(names, logits.astype(np.float64)), step_count)
    return Prediction(_ranked(names, logits[0].tolist()), [], step_count)


def _most_probable(names: tuple[str, ...], logits: NDArray[np.float64]) -> list[LabelProbability]:
    """Return the most probable label of every step."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = weights.max(axis=1) / weights.sum(axis=1)
    best = logits.argmax(axis=1)
    return [
        (names[label], probability) for label, probability in zip(best.tolist(), probabilities.tolist(), strict=True)
    ]


def _ranked(names: tuple[str, ...], logits: list[float]) -> list[LabelProbability]:
    """Return all labels, the most probable first; of equals the one with the lowest id. For a few labels, the usual
    case, numpy takes three times as long."""
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    total = sum(weights)
    order = sorted(range(len(names)), key=weights.__getitem__, reverse=True)
    return [(names[label], weights[label] / total) for label in order]
