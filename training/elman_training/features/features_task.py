"""Classification of rows of numbers, one to one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from elman_training.cells.cell import State
from elman_training.config import FeaturesConfig
from elman_training.features.feed_forward_network import FeedForwardNetwork
from elman_training.features.table_corpus import Table
from elman_training.splits import split_by_class
from elman_training.task import Progress, Tally, Task, Validation, count_labels


class FeaturesTask(Task):
    """The target is one class for each row of a table.

    The rows are split by class: a share is for the test, and a share of the others is held out.
    """

    labels: tuple[str, ...]
    unit = "example"

    def __init__(self, config: FeaturesConfig, table: Table) -> None:
        self._config = config
        self.vocabularies = {}
        self.features = table.features
        self.labels = tuple(sorted(set(table.labels)))
        self.label_counts = count_labels(self.labels, table.labels)
        ids = {name: index for index, name in enumerate(self.labels)}
        labels = np.array([ids[label] for label in table.labels], dtype=np.int64)
        rest, test = split_by_class(range(len(labels)), table.labels.__getitem__, config.test_share, config.seed)
        training, held_out = split_by_class(rest, table.labels.__getitem__, config.held_out, config.seed)
        self._training = table.values[training], labels[training]
        self._held_out = table.values[held_out], labels[held_out]
        self._test = table.values[test], labels[test]

    def prepare(self, network: FeedForwardNetwork) -> None:
        values = self._training[0].astype(np.float64)
        deviation = values.std(axis=0)
        # A feature that is constant in training carries no information, whatever its value is later.
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        network.mean.copy_(torch.from_numpy(values.mean(axis=0)))
        network.scale.copy_(torch.from_numpy(scale))

    def data(self) -> Iterable[NDArray[Any]]:
        return self._training

    def loss(self, network: FeedForwardNetwork, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        values, labels = self._training
        size = min(self._config.lanes, len(labels))
        epoch, within = divmod(step, len(labels) // size)
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(labels))
        chosen = order[within * size : (within + 1) * size]
        logits = network(torch.from_numpy(values[chosen]))
        return functional.cross_entropy(logits.float(), torch.from_numpy(labels[chosen])), {}, size

    def validate(self, network: FeedForwardNetwork, *, rows: int) -> Validation:
        values, labels = self._held_out
        limit = self._config.validation_limit
        return _measure(network, values[:limit], labels[:limit])

    def test(self, network: Any, progress: Progress) -> dict[str, float]:
        progress("testing", 0.0)
        return _measure(network, *self._test).as_metrics("test")


def _measure(network: FeedForwardNetwork, values: NDArray[np.float32], labels: NDArray[np.int64]) -> Validation:
    tally = Tally()
    tally.add(network(torch.from_numpy(values)), torch.from_numpy(labels))
    return tally.validation()
