"""Classification of numbers, one to one: a feed-forward network without state, and its task.

Axes: B rows, F features, H hidden units, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from elman_training.cells import State
from elman_training.config import FeaturesConfig
from elman_training.splits import split_by_class
from elman_training.tables import Table
from elman_training.task import Tally, Task, Validation


class FeedForwardNetwork(nn.Module):
    """Linear layers with rectifiers between. The inputs are brought to zero mean and unit variance by the network
    itself, so that whoever uses it gives them as they are.

    Args:
        features: F.
        outputs: C.
        layers: how many hidden layers.
        hidden: H.
        dropout: the share of hidden units dropped while training.
        input_noise: the standard deviation of what is added to the scaled inputs while training (Bishop 1995).
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, *, features: int, outputs: int, layers: int, hidden: int, dropout: float, input_noise: float
    ) -> None:
        super().__init__()
        self.input_noise = input_noise
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        parts: list[nn.Module] = []
        for before, after in pairwise([features, *[hidden] * layers]):
            parts += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*parts, nn.Linear(hidden, outputs))

    def forward(self, values: Tensor) -> Tensor:
        """Numbers [B, F] to logits [B, C]."""
        scaled = (values - self.mean) * self.scale
        if self.training and self.input_noise:
            scaled = scaled + self.input_noise * torch.randn_like(scaled)
        return cast(Tensor, self.layers(scaled))


class FeaturesTask(Task):
    """A class for each row of a table.

    The rows are split by class (stratified): a share for `test`, of the others a share held out.
    """

    labels: tuple[str, ...]
    unit = "example"

    def __init__(self, config: FeaturesConfig, table: Table) -> None:
        self._config = config
        self.vocabularies = {}
        self.features = table.features
        self.labels = tuple(sorted(set(table.labels)))
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
        # What is always the same while training says nothing, whatever it may be later.
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

    def validate(self, network: FeedForwardNetwork, *, lanes: int) -> Validation:
        values, labels = self._held_out
        limit = self._config.validation_limit
        return _measure(network, values[:limit], labels[:limit])

    def test(self, network: Any, progress: Callable[[str, float], None]) -> dict[str, float]:
        progress("testing", 0.0)
        return _measure(network, *self._test).as_metrics("test")


def _measure(network: FeedForwardNetwork, values: NDArray[np.float32], labels: NDArray[np.int64]) -> Validation:
    tally = Tally()
    tally.add(network(torch.from_numpy(values)), torch.from_numpy(labels))
    return tally.validation()
