"""Classification of texts, many to one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from elman_training.cells.cell import State
from elman_training.config import TextConfig
from elman_training.corpus_vocabularies import text_vocabulary
from elman_training.labels.example_corpus import LabelledExample
from elman_training.labels.example_parts import ExampleParts
from elman_training.length_buckets import make_buckets
from elman_training.splits import shuffled
from elman_training.task import Ids, Progress, Tally, Task, Validation, count_labels, pad

_EVALUATION_ROWS = 256


class TextClassifier(Protocol):
    """A model from whole texts to logits: a network, or a graph exported from one."""

    def last_logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Padded token ids [B, T] and lengths [B] to the logits after each text, [B, C]."""
        ...


class ClassificationTask(Task):
    """The target is one class for each text.

    Texts of different lengths share a batch, padded at the end. Padding cannot influence the result: a network that
    reads left to right has not seen it at the last step of a row, and one that reads in both directions masks it.
    """

    labels: tuple[str, ...]
    unit = "example"

    def __init__(self, config: TextConfig, parts: ExampleParts) -> None:
        self.vocabulary = text_vocabulary(config, [example.text for example in parts.training])
        self.vocabularies = {"": self.vocabulary}
        self.labels = tuple(sorted({example.label for example in parts.training + parts.held_out}))
        everything = (*parts.training, *parts.held_out, *parts.test)
        self.label_counts = count_labels(self.labels, (example.label for example in everything))
        self._training = self._encode(parts.training)
        held_out = shuffled(parts.held_out, config.seed, "held out")[: config.validation_limit]
        self._held_out = sorted(self._encode(held_out), key=lambda example: len(example[0]))
        self._test = sorted(self._encode(parts.test), key=lambda example: len(example[0]))
        self._config = config
        self._lengths = [len(tokens) for tokens, _ in self._training]
        self._batches_of_epoch = lru_cache(maxsize=1)(self._make_epoch)

    def data(self) -> Iterable[Ids]:
        for tokens, label in self._training:
            yield from (tokens, np.array([label]))

    def _encode(self, examples: Sequence[LabelledExample]) -> list[tuple[Ids, int]]:
        ids = {name: index for index, name in enumerate(self.labels)}
        return [(self.vocabulary.encode(example.text), ids[example.label]) for example in examples]

    def _make_epoch(self, epoch: int) -> list[Ids]:
        return make_buckets(self._lengths, self._config.lanes, np.random.default_rng([self._config.seed, epoch]))

    def loss(self, network: TextClassifier, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        epoch, within = divmod(step, -(-len(self._training) // self._config.lanes))
        chosen = [self._training[index] for index in self._batches_of_epoch(epoch)[within]]
        logits, labels = _logits(network, chosen)
        return functional.cross_entropy(logits.float(), labels), {}, sum(len(tokens) for tokens, _ in chosen)

    def validate(self, network: TextClassifier, *, rows: int) -> Validation:
        return _measure(network, self._held_out)

    def test(self, network: Any, progress: Progress) -> dict[str, float]:
        if not self._test:
            return {}
        progress("testing", 0.0)
        return _measure(network, self._test).as_metrics("test")


def _measure(network: TextClassifier, examples: Sequence[tuple[Ids, int]]) -> Validation:
    tally = Tally()
    for start in range(0, len(examples), _EVALUATION_ROWS):
        tally.add(*_logits(network, examples[start : start + _EVALUATION_ROWS]))
    return tally.validation()


def _logits(network: TextClassifier, examples: Sequence[tuple[Ids, int]]) -> tuple[Tensor, Tensor]:
    tokens, lengths = pad([tokens for tokens, _ in examples])
    return network.last_logits(tokens, lengths), torch.tensor([label for _, label in examples])
