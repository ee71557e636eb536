"""The training loop: batch -> loss -> gradient -> step, validated now and then, the best kept.

Nothing here depends on what happened before except the tensors in `last.safetensors`: batches are functions of the
step number and the random numbers of a step are seeded by it. A run that was stopped and resumed therefore gives the
same numbers, to the bit, as one that was not.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from elman_training.checkpoint import (
    BEST,
    CURVE,
    LAST,
    METRICS,
    RESULT,
    load_config,
    load_tensors,
    replace_file,
    save_tensors,
    start_folder,
)
from elman_training.config import TrainingConfig
from elman_training.curve import draw_curve, read_metrics, seconds_of
from elman_training.errors import TrainingError
from elman_training.families import make_network, make_task
from elman_training.network import detached, parameter_count
from elman_training.optimization import advance_schedule, make_average, make_optimizer, make_schedule
from elman_training.precision import precision_here, products_in
from elman_training.task import Task, Validation

_LOG_EVERY = 20
_VALIDATION_LANES = 32


@dataclass(frozen=True)
class Result:
    """How a run stands.

    Attributes:
        step: the number of steps done.
        finished: whether these are all; otherwise the run can be resumed.
        stopped: whether Ctrl-C or SIGTERM has ended it.
        validation: of the kept weights, measured exactly.
        measured: what the task's `test` found of them; nothing before all steps are done.
    """

    step: int
    finished: bool
    stopped: bool
    validation: Validation
    measured: Mapping[str, float]


def train(
    config: TrainingConfig, run: Path, *, console: Console, stop_after: int | None = None, minutes: float | None = None
) -> Result:
    """Train from the start into the new folder `run`.

    Args:
        config: what to do.
        run: the folder to make.
        console: where progress is shown.
        stop_after: stop after this many steps, as Ctrl-C would.
        minutes: stop after this time, as Ctrl-C would.

    Raises:
        TrainingError: the corpus cannot be used, or the folder holds a run already.
    """
    task = make_task(config)
    start_folder(run, config, task)
    return _Trainer(config, task, run, console).run(stop_after, minutes)


def resume(run: Path, *, console: Console, stop_after: int | None = None, minutes: float | None = None) -> Result:
    """Go on with a stopped run, with the numbers it would have had without the stop.

    Raises:
        TrainingError: the folder holds no run that can be resumed, or its corpus has changed.
    """
    config = load_config(run)
    trainer = _Trainer(config, make_task(config), run, console)
    if (run / LAST).exists():
        trainer.load()
    _forget_after(run / METRICS, trainer.step)
    trainer.seconds = seconds_of(run / METRICS)
    return trainer.run(stop_after, minutes)


class _Trainer:
    def __init__(self, config: TrainingConfig, task: Task, run: Path, console: Console) -> None:
        self.config = config
        self.task = task
        self.folder = run
        self.console = console
        self.network = make_network(config, task.sizes)
        task.prepare(self.network)
        self.optimizer = make_optimizer(self.network, config)
        self.schedule = make_schedule(self.optimizer, config)
        self.mean = make_average(self.network, config.average_decay)
        self.fingerprint = task.fingerprint()
        self.precision = precision_here(config.precision)
        self.carried: dict[str, Tensor] = {}
        self.step = 0
        self.seconds = 0.0  # of training so far, over all of its sessions
        # What did best at the validations that an unbroken run has.
        self.best: dict[str, Tensor] = {}
        self.best_step = 0
        self.best_criterion = math.inf
        self.validated_step = -1

    def run(self, stop_after: int | None, minutes: float | None) -> Result:
        config = self.config
        tokens = "".join(
            f"{vocabulary.size} {prefix.replace('-', ' ')}tokens, "
            for prefix, vocabulary in self.task.vocabularies.items()
        )
        self.console.print(
            f"{config.task} on {config.corpus}: {config.network_name}, {parameter_count(self.network):,} parameters, "
            f"{tokens}{config.steps} steps"
        )
        if self.precision != config.precision:
            self.console.print(f"this processor computes no {config.precision}: training in {self.precision}")
        end = config.steps if stop_after is None else min(config.steps, stop_after)
        started, before = time.monotonic(), self.seconds
        with _interruptions() as interrupted, (self.folder / METRICS).open("a") as log:
            with self._progress() as progress:
                bar = progress.add_task("training", total=config.steps, completed=self.step, shown="")
                tokens_read, since = 0, time.monotonic()
                while self.step < end and not interrupted:
                    if minutes is not None and time.monotonic() - started > minutes * 60:
                        self.console.print(f"stopped after {minutes} minutes, as asked")
                        break
                    rate = self.schedule.get_last_lr()[0]
                    loss, norm, read = self._train_step()
                    tokens_read += read
                    if self.step % _LOG_EVERY == 0:
                        speed = tokens_read / (time.monotonic() - since)
                        tokens_read, since = 0, time.monotonic()
                        _log(log, step=self.step, nats=loss, bits=loss / math.log(2), gradient_norm=norm,
                             learning_rate=rate, tokens_per_second=round(speed),
                             seconds=round(self.seconds, 1))  # fmt: skip
                        progress.update(bar, shown=f"{loss:.3f} nats  {speed:,.0f} tokens/s")
                    progress.update(bar, completed=self.step)
                    self.seconds = before + time.monotonic() - started
                    if self.step % config.validate_every == 0 or self.step == config.steps:
                        self._validate(log)
                        self.save()
            if interrupted:
                self.console.print("stopping: keeping what was learned")
            if self.validated_step != self.step:
                # Not a validation of the unbroken run: it may choose the weights that are kept until the run goes on,
                # and nothing after that.
                self.save()
                self._validate(log, scheduled=False)
            return self._finish(stopped=bool(interrupted))

    def _train_step(self) -> tuple[float, float, int]:
        # Seeded by the step, so that dropout needs no state of its own to be resumed.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        self.network.train()
        with products_in(self.precision):
            loss, state, read = self.task.loss(self.network, self.step, self.carried)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is not finite at step {self.step}: lower --learning-rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.mean.update_parameters(self.network)
        self.carried = {name: value.float() for name, value in detached(state).items()}
        self.step += 1
        return loss.item(), norm.item(), read

    @property
    def average(self) -> nn.Module:
        """The network with the running mean of the weights."""
        return self.mean.module

    @torch.no_grad()
    def _validate(self, log: Any, *, scheduled: bool = True) -> None:
        validation = self.task.validate(self.average, lanes=_VALIDATION_LANES)
        criterion = validation.nats if validation.criterion is None else validation.criterion
        better = criterion < self.best_criterion
        if better:
            weights = {name: value.clone() for name, value in self.average.state_dict().items()}
            save_tensors(self.folder / BEST, weights, {"step": self.step})
        if scheduled:
            self.validated_step = self.step
            _log(log, step=self.step, seconds=round(self.seconds, 1), **validation.as_metrics())
            if better:
                self.best, self.best_criterion, self.best_step = weights, criterion, self.step
        accuracy = "" if validation.accuracy is None else f", {validation.accuracy:.1%} right"
        self.console.print(
            f"step {self.step}: held out {validation.nats:.4f} nats, {validation.bits:.4f} bits "
            f"per {self.task.unit}{accuracy}{' (kept)' if better else ''}"
        )

    @torch.no_grad()
    def _finish(self, *, stopped: bool) -> Result:
        tensors, metadata = load_tensors(self.folder / BEST)
        self.average.load_state_dict(tensors)
        validation = self.task.validate(self.average, lanes=1)
        finished = self.step >= self.config.steps
        measured: dict[str, float] = {}
        if finished:
            with self._progress() as progress:
                bar = progress.add_task("testing", total=1000, shown="")
                measured = self.task.test(
                    self.average,
                    lambda what, share: progress.update(bar, description=what, completed=int(1000 * share)),
                )
        result = Result(self.step, finished, stopped, validation, measured)
        summary = {
            "step": self.step,
            "kept_step": metadata["step"],
            "finished": result.finished,
            "parameters": parameter_count(self.network),
            **validation.as_metrics(),
            **measured,
        }
        replace_file(self.folder / RESULT, lambda part: part.write_text(json.dumps(summary, indent=2) + "\n"))
        draw_curve(self.folder / METRICS, self.folder / CURVE, self.task.unit)
        return result

    def save(self) -> None:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"carried.{name}": value for name, value in self.carried.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        metadata = {
            "step": self.step,
            "validated_step": self.validated_step,
            "best_step": self.best_step,
            "best_criterion": self.best_criterion,
            "fingerprint": self.fingerprint,
        }
        save_tensors(self.folder / LAST, tensors, metadata)

    def load(self) -> None:
        tensors, metadata = load_tensors(self.folder / LAST)
        if not {"fingerprint", "best_criterion"} <= metadata.keys():
            raise TrainingError(f"{self.folder}: an older elman has written it; start a new run with another --output")
        if metadata["fingerprint"] != self.fingerprint:
            raise TrainingError(
                f"{self.config.corpus}: is not what {self.folder} was trained on; start a new run with another --output"
            )
        self.step, self.validated_step = metadata["step"], metadata["validated_step"]
        self.best_step, self.best_criterion = metadata["best_step"], metadata["best_criterion"]
        self.network.load_state_dict(_with_prefix(tensors, "network."))
        self.average.load_state_dict(_with_prefix(tensors, "average."))
        self.carried = _with_prefix(tensors, "carried.")
        self.best = _with_prefix(tensors, "best.")
        if self.best:
            save_tensors(self.folder / BEST, self.best, {"step": self.best_step})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _with_prefix(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        advance_schedule(self.schedule, self.step)
        self.mean.n_averaged.fill_(1 + self.step)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _log(file: Any, **record: object) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _forget_after(metrics: Path, step: int) -> None:
    """Drop what was logged after the last checkpoint, which will be computed, and logged, again."""
    if metrics.exists():
        kept = [record for record in read_metrics(metrics) if record["step"] <= step]
        replace_file(metrics, lambda part: part.write_text("".join(json.dumps(record) + "\n" for record in kept)))


class _Interruption:
    """Whether Ctrl-C or SIGTERM has asked to stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


@contextmanager
def _interruptions() -> Iterator[_Interruption]:
    interruption = _Interruption()
    before = {number: signal.signal(number, interruption.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, old in before.items():
            signal.signal(number, old)
