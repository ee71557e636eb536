"""What the trainer asks of whatever is to be learnt, and what it is told."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from elman_bundle import InputVocabulary
from elman_training.cells import State
from elman_training.lanes import Ids


@dataclass(frozen=True)
class Validation:
    """What the held-out part says.

    Attributes:
        nats: mean negative log-likelihood of what was to be predicted.
        accuracy: the share predicted right; None where what is predicted is no class.
        majority: the share that always guessing the commonest class gets right; likewise.
        criterion: what tells which weights are kept, the less the better; None: the nats.
    """

    nats: float
    accuracy: float | None = None
    majority: float | None = None
    criterion: float | None = None

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    def as_metrics(self, part: str = "validation") -> dict[str, float]:
        """By name, each of which begins with that of the part that was measured."""
        metrics = {
            f"{part}_nats": self.nats,
            f"{part}_bits": self.bits,
            f"{part}_accuracy": self.accuracy,
            f"{part}_majority": self.majority,
        }
        return {name: value for name, value in metrics.items() if value is not None}


class Task(ABC):
    """What the trainer asks of a task. It is a pure function of the step number: it keeps no position of its own, so
    that training can stop and resume.

    Attributes:
        vocabularies: of what is read and written, by what their files' names in the run's folder begin with; the
            configuration's `vocabularies` says how to read them again.
        labels: the classes, or None where there are none.
        features: what the numbers are called that are read, or None where none are.
        unit: what `nats` is counted per, for people.
    """

    vocabularies: Mapping[str, InputVocabulary]
    labels: tuple[str, ...] | None
    features: tuple[str, ...] | None = None
    unit: str

    @property
    def sizes(self) -> dict[str, int]:
        """What a network's shape depends on beside the configuration: the size of each vocabulary by its name, and the
        number of "labels" and of "features" where there are some."""
        sizes = {name: vocabulary.size for name, vocabulary in self.vocabularies.items()}
        listed = {"labels": self.labels, "features": self.features}
        return sizes | {name: len(entries) for name, entries in listed.items() if entries is not None}

    def prepare(self, network: Any) -> None:  # noqa: B027 - most have nothing to tell
        """Tell an untrained network what it must know of the training data, such as the scale of its inputs."""

    @abstractmethod
    def data(self) -> Iterable[NDArray[Any]]:
        """What is trained on, to tell whether a corpus has changed."""

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
        """The loss of batch `step` in nats, the state to carry to the next one, and the number of steps it read."""

    @abstractmethod
    def validate(self, network: Any, *, lanes: int) -> Validation:
        """Measure the held-out part.

        Args:
            network: what to measure.
            lanes: into how many rows a text is cut for it; 1 is exact and slow, more is faster and a little
                pessimistic, because every row starts cold.
        """

    def test(self, network: Any, progress: Callable[[str, float], None]) -> dict[str, float]:
        """What is measured once, of the kept weights, in the end: the figures that the field reports.

        Args:
            network: what to measure.
            progress: told what is being measured, and the share that is done.
        """
        return {}


class Tally:
    """Sums up predictions over batches."""

    def __init__(self) -> None:
        self._nats = 0.0
        self._right = 0
        self._counts: Counter[int] = Counter()

    def add(self, logits: Tensor, wanted: Tensor) -> None:
        """Count predictions: [N, C] against [N]."""
        self._nats += float(functional.cross_entropy(logits.float(), wanted, reduction="sum"))
        self._right += int((logits.argmax(1) == wanted).sum())
        self._counts.update(dict(enumerate(torch.bincount(wanted).tolist())))

    def validation(self) -> Validation:
        total = self._counts.total()
        return Validation(self._nats / total, self._right / total, max(self._counts.values()) / total)


def pad(sequences: Sequence[Ids], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as one [B, T] with `fill` behind the shorter ones, and their lengths [B]."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = torch.full((len(sequences), int(lengths.max())), fill)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = torch.from_numpy(sequence)
    return padded, lengths
