"""The interface between the trainer and the tasks: what a batch is, what the loss is, what is measured."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from elman_bundle import InputVocabulary
from elman_training.cells.cell import State

IGNORED = -100  # A target that is not counted; torch's cross-entropy leaves it out.

Ids = NDArray[np.int64]
# Shows progress: a description, and the share done from 0 to 1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Validation:
    """Measurements on the held-out part.

    Attributes:
        nats: mean negative log-likelihood of the targets.
        accuracy: the share of targets predicted correctly; None if the targets are no classes.
        majority: the accuracy of always predicting the most frequent class; None if the targets are no classes.
        criterion: what selects the weights that are kept, lower is better; None for the nats.
    """

    nats: float
    accuracy: float | None = None
    majority: float | None = None
    criterion: float | None = None

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    def as_metrics(self, part: str = "validation") -> dict[str, float]:
        """The measurements by name, prefixed with the part of the corpus that was measured."""
        metrics = {
            f"{part}_nats": self.nats,
            f"{part}_bits": self.bits,
            f"{part}_accuracy": self.accuracy,
            f"{part}_majority": self.majority,
        }
        return {name: value for name, value in metrics.items() if value is not None}


class Task(ABC):
    """A training objective with its data.

    A batch is a pure function of the step number. A task keeps no position of its own, so training can stop and resume.

    Attributes:
        vocabularies: the vocabularies that are read and written, by the prefix of their files' names in the run's
            folder. `vocabularies` of the configuration says how to read them again.
        labels: the classes; None if there are none.
        label_counts: how often each class occurs in the corpus; empty if there are none.
        features: the names of the numeric inputs; None if there are none.
        unit: what `nats` is counted per, for people.
    """

    vocabularies: Mapping[str, InputVocabulary]
    labels: tuple[str, ...] | None
    label_counts: Mapping[str, int] = {}
    features: tuple[str, ...] | None = None
    unit: str

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that, with the configuration, determine a network's shape.

        They are the size of each vocabulary by its prefix, and the numbers of "labels" and "features" if there are any.
        """
        sizes = {name: vocabulary.size for name, vocabulary in self.vocabularies.items()}
        listed = {"labels": self.labels, "features": self.features}
        return sizes | {name: len(entries) for name, entries in listed.items() if entries is not None}

    def prepare(self, network: Any) -> None:  # noqa: B027 - most tasks have nothing to set
        """Set what an untrained network must know of the training data, such as the scale of its inputs."""

    @abstractmethod
    def data(self) -> Iterable[NDArray[Any]]:
        """The training data, to detect that a corpus has changed."""

    def fingerprint(self) -> str:
        """A hash of the vocabularies, the labels and the training data."""
        tokens = [vocabulary.tokens for _, vocabulary in sorted(self.vocabularies.items())]
        features = () if self.features is None else (self.features,)
        digest = hashlib.sha256(repr((*tokens, self.labels, *features)).encode())
        for part in self.data():
            digest.update(part.tobytes())
        return digest.hexdigest()

    @abstractmethod
    def loss(self, network: Any, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        """Compute the loss of one batch.

        Args:
            network: the network being trained.
            step: the number of the batch.
            carried: the state that the previous batch returned; empty at the first one.

        Returns:
            The loss in nats, the state to carry to the next batch, and the number of tokens or rows that were read.
        """

    @abstractmethod
    def validate(self, network: Any, *, rows: int) -> Validation:
        """Measure the held-out part.

        Args:
            network: the network to measure.
            rows: the number of rows that a long text is cut into. 1 is exact and slow; more are faster and slightly
                pessimistic, because every row starts from the initial state.
        """

    def test(self, network: Any, progress: Progress) -> dict[str, float]:
        """Measure the kept weights once, at the end: the figures that the field reports.

        Args:
            network: the network to measure.
            progress: called with a description and the share done.
        """
        return {}


class Tally:
    """Sums of predictions over batches."""

    def __init__(self) -> None:
        self._nats = 0.0
        self._correct = 0
        self._counts: Counter[int] = Counter()

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count predictions: logits [N, C] and targets [N]."""
        self._nats += float(functional.cross_entropy(logits.float(), targets, reduction="sum"))
        self._correct += int((logits.argmax(1) == targets).sum())
        self._counts.update(dict(enumerate(torch.bincount(targets).tolist())))

    def validation(self) -> Validation:
        total = self._counts.total()
        return Validation(self._nats / total, self._correct / total, max(self._counts.values()) / total)


def pad(sequences: Sequence[Ids], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Stack sequences of different lengths.

    Args:
        sequences: int64 [T] each.
        fill: the value after the end of the shorter ones.

    Returns:
        The sequences, [B, T], and their lengths, [B].
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = torch.full((len(sequences), int(lengths.max())), fill)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = torch.from_numpy(sequence)
    return padded, lengths


def count_labels(labels: Iterable[str], occurrences: Iterable[str]) -> dict[str, int]:
    """How often each label occurs, in the order of the labels."""
    counts = Counter(occurrences)
    return {label: counts[label] for label in labels}
