"""The results of classification: labels with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from elman_protos import v1


@dataclass(frozen=True)
class Label:
    """A label and its probability according to the model."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The labels of an input.

    Attributes:
        labels: for a classifier, all labels, the most probable first; for a tree, those of its root; empty for a
            tagger.
        steps: for a tagger, the label of each step; for a tree whose nodes were all requested, the label of each node;
            empty for a classifier.
        step_count: the number of steps read, in a stream those of all pieces together; for a tree, its nodes.
        session_position: the position of the session after this call or piece; None without a session.
        unknown_token_count: the number of tokens of the input or the piece that are unknown to the vocabulary.
    """

    labels: tuple[Label, ...]
    steps: tuple[Label, ...]
    step_count: int
    session_position: int | None = None
    unknown_token_count: int = 0


def prediction_of(prediction: v1.Prediction, session_position: int | None, unknown_token_count: int) -> Prediction:
    return Prediction(
        labels=tuple(Label(label.label, label.probability) for label in prediction.labels),
        steps=tuple(Label(label.label, label.probability) for label in prediction.steps),
        step_count=prediction.step_count,
        session_position=session_position,
        unknown_token_count=unknown_token_count,
    )
