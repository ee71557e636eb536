"""The optimizer of a run, its learning-rate schedule and the running mean of its weights, all torch's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from elman_training.config import RunConfig

_AVERAGE_WARMUP_STEPS = 10


def make_optimizer(network: nn.Module, config: RunConfig) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices but not biases."""
    matrices = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW(groups, config.learning_rate, fused=True)


def make_schedule(optimizer: AdamW, config: RunConfig) -> LRScheduler:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017)."""
    warmup, rest = config.warmup_steps, max(1, config.steps - config.warmup_steps)
    schedule: LRScheduler = CosineAnnealingLR(optimizer, rest, config.learning_rate * config.final_learning_rate)
    if warmup:
        # Step s of the warm-up has (s + 1) / warmup of the learning rate: the first step is not lost to a rate of 0.
        rising = LinearLR(optimizer, 1 / warmup, total_iters=max(1, warmup - 1))
        schedule = SequentialLR(optimizer, [rising, schedule], [warmup])
    return schedule


def advance_schedule(schedule: LRScheduler, steps: int) -> None:
    """Bring a new schedule to where a run was stopped; checkpoints hold none, because the step number determines it.

    The optimizer must have no gradients yet.
    """
    schedule.optimizer.step()  # Changes nothing without gradients; torch warns if the schedule advances first.
    for _ in range(steps):
        schedule.step()


def make_average(network: nn.Module, decay: float) -> AveragedModel:
    """The exponential running mean of a network's weights (Polyak and Juditsky 1992), which is validated and kept.

    The random initial weights must fade, so the mean reaches back over a tenth of the steps at most.

    Args:
        network: the untrained network, whose weights are the first ones in the mean.
        decay: the weight of the mean so far; 0 makes the mean follow the network.

    Returns:
        The mean in evaluation mode. Its `n_averaged` is the number of steps done, plus 1 for the initial weights.
    """

    def update(mean: tuple[Tensor, ...] | list[Tensor], values: tuple[Tensor, ...] | list[Tensor], count: Any) -> None:
        steps = int(count)
        blend = get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
            min(decay, steps / (steps + _AVERAGE_WARMUP_STEPS))
        )
        blend(mean, values, count)

    average = AveragedModel(network, multi_avg_fn=update)
    average.n_averaged.fill_(1)
    return average.eval()
