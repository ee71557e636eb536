"""What a run carries from step to step, and its checkpoint.

Nothing else influences the numbers: batches are functions of the step number, and the random numbers of a step are
seeded by it. A run that was stopped and resumed therefore gives the same numbers, to the bit, as an uninterrupted one.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from elman_training.cells.stack import detached
from elman_training.checkpoint import BEST, LAST, load_tensors, save_tensors
from elman_training.config import TrainingConfig
from elman_training.families import make_network
from elman_training.optimization import advance_schedule, make_average, make_optimizer, make_schedule
from elman_training.precision import autocast, supported_precision
from elman_training.task import Task
from elman_training.training_error import TrainingError

_SEEDS_PER_RUN = 1_000_003  # more than the steps of a run


class TrainingState:
    """The network, the optimizer and the best weights of a run.

    Args:
        config: the configuration of the run.
        task: its task.

    Attributes:
        network: the network being trained.
        average: the network with the running mean of the weights, in evaluation mode.
        precision: the precision of the products on this processor.
        step: the number of steps done.
        validated_step: the step of the last scheduled validation; -1 before the first.
        best: the weights with the best scheduled validation; empty before the first.
        best_step: the step of that validation.
        best_criterion: the criterion of that validation; infinity before the first.
        last_learning_rate: the learning rate of the last step.
    """

    def __init__(self, config: TrainingConfig, task: Task) -> None:
        self._config = config
        self._task = task
        self.network = make_network(config, task.sizes)
        task.prepare(self.network)
        self._optimizer = make_optimizer(self.network, config)
        self._schedule = make_schedule(self._optimizer, config)
        self._mean = make_average(self.network, config.average_decay)
        self._fingerprint = task.fingerprint()
        self._carried: dict[str, Tensor] = {}
        self.precision = supported_precision(config.precision)
        self.step = 0
        self.validated_step = -1
        self.best: dict[str, Tensor] = {}
        self.best_step = 0
        self.best_criterion = math.inf
        self.last_learning_rate = 0.0

    @property
    def average(self) -> nn.Module:
        return self._mean.module

    def train_step(self) -> tuple[float, float, int]:
        """Do one step.

        Returns:
            The loss in nats, the norm of the gradient before it was clipped, and the number of tokens read.

        Raises:
            TrainingError: the loss is not finite.
        """
        # Seeded by the step, so that dropout needs no state of its own to be resumed.
        torch.manual_seed(self._config.seed * _SEEDS_PER_RUN + self.step)
        self.network.train()
        with autocast(self.precision):
            loss, state, read = self._task.loss(self.network, self.step, self._carried)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is not finite at step {self.step}: lower --learning-rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._config.clip_norm)
        self._optimizer.step()
        self.last_learning_rate = float(self._schedule.get_last_lr()[0])
        self._schedule.step()
        self._mean.update_parameters(self.network)
        self._carried = {name: value.float() for name, value in detached(state).items()}
        self.step += 1
        return loss.item(), norm.item(), read

    def save(self, folder: Path) -> None:
        """Write the checkpoint to resume from."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"carried.{name}": value for name, value in self._carried.items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        metadata = {
            "step": self.step,
            "validated_step": self.validated_step,
            "best_step": self.best_step,
            "best_criterion": self.best_criterion,
            "fingerprint": self._fingerprint,
        }
        save_tensors(folder / LAST, tensors, metadata)

    def load(self, folder: Path) -> None:
        """Read the checkpoint of `save`, and restore the best weights of the scheduled validations.

        Raises:
            TrainingError: the checkpoint cannot be read, was written by an older version, or has another corpus.
        """
        tensors, metadata = load_tensors(folder / LAST)
        if not {"fingerprint", "best_criterion"} <= metadata.keys():
            raise TrainingError(f"{folder}: an older elman has written it; start a new run with another --output")
        if metadata["fingerprint"] != self._fingerprint:
            raise TrainingError(
                f"{self._config.corpus}: is not what {folder} was trained on; start a new run with another --output"
            )
        self.step, self.validated_step = metadata["step"], metadata["validated_step"]
        self.best_step, self.best_criterion = metadata["best_step"], metadata["best_criterion"]
        self.network.load_state_dict(_with_prefix(tensors, "network."))
        self.average.load_state_dict(_with_prefix(tensors, "average."))
        self._carried = _with_prefix(tensors, "carried.")
        self.best = _with_prefix(tensors, "best.")
        if self.best:
            save_tensors(folder / BEST, self.best, {"step": self.best_step})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _with_prefix(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        advance_schedule(self._schedule, self.step)
        self._mean.n_averaged.fill_(1 + self.step)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
