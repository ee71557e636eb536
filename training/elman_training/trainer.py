"""The training loop: batch, loss, gradient, step; validated at intervals, with the best weights kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from torch import nn

from elman_training.atomic_files import replace_file
from elman_training.checkpoint import (
    BEST,
    CURVE,
    LAST,
    METRICS,
    RESULT,
    load_config,
    load_tensors,
    save_tensors,
    start_folder,
)
from elman_training.config import TrainingConfig
from elman_training.corpus_files import Note
from elman_training.families import make_task
from elman_training.interruption import Interruption, interruptible
from elman_training.loss_curve import draw_loss_curve
from elman_training.metrics_log import drop_records_after, training_seconds, write_record
from elman_training.task import Task, Validation
from elman_training.training_state import TrainingState

_LOG_EVERY = 20  # steps
_VALIDATION_ROWS = 32


@dataclass(frozen=True)
class Result:
    """The state of a run after a call.

    Attributes:
        step: the number of steps done.
        finished: whether these are all steps; otherwise the run can be resumed.
        stopped: whether Ctrl-C or SIGTERM ended the call.
        validation: of the kept weights, measured exactly.
        measured: the results of the task's `test` on the kept weights; empty before all steps are done.
    """

    step: int
    finished: bool
    stopped: bool
    validation: Validation
    measured: Mapping[str, float]


def train(
    config: TrainingConfig, run: Path, *, console: Console, stop_after: int | None = None, minutes: float | None = None
) -> Result:
    """Train from the start in a new folder.

    Args:
        config: the configuration.
        run: the folder to create.
        console: where progress is shown.
        stop_after: stop after this number of steps, as Ctrl-C would.
        minutes: stop after this time, as Ctrl-C would.

    Raises:
        TrainingError: the corpus cannot be used, or the folder holds a run already.
    """
    task = make_task(config, _printing(console))
    start_folder(run, config, task)
    return _Trainer(config, task, run, console).run(stop_after, minutes)


def resume(run: Path, *, console: Console, stop_after: int | None = None, minutes: float | None = None) -> Result:
    """Continue a stopped run, with the numbers that it would have without the stop.

    Args:
        run: the folder of the run.
        console: where progress is shown.
        stop_after: stop after this number of steps in all, as Ctrl-C would.
        minutes: stop after this time, as Ctrl-C would.

    Raises:
        TrainingError: the folder holds no run that can be resumed, or its corpus has changed.
    """
    config = load_config(run)
    trainer = _Trainer(config, make_task(config, _printing(console)), run, console)
    if (run / LAST).exists():
        trainer.state.load(run)
    drop_records_after(run / METRICS, trainer.state.step)
    trainer.seconds = training_seconds(run / METRICS)
    return trainer.run(stop_after, minutes)


class _Trainer:
    def __init__(self, config: TrainingConfig, task: Task, run: Path, console: Console) -> None:
        self.state = TrainingState(config, task)
        self.seconds = 0.0  # of training so far, over all calls
        self._config = config
        self._task = task
        self._folder = run
        self._console = console

    def run(self, stop_after: int | None, minutes: float | None) -> Result:
        self._announce()
        end = self._config.steps if stop_after is None else min(self._config.steps, stop_after)
        with interruptible() as interrupted, (self._folder / METRICS).open("a") as log:
            self._train_until(end, minutes, interrupted, log)
            if interrupted:
                self._console.print("stopping: keeping what was learned")
            if self.state.validated_step != self.state.step:
                # An uninterrupted run has no validation here: it may select the weights that are kept until the run is
                # resumed, and nothing after that.
                self.state.save(self._folder)
                self._validate(log, scheduled=False)
            return self._finish(stopped=bool(interrupted))

    def _announce(self) -> None:
        config, state = self._config, self.state
        tokens = "".join(
            f"{vocabulary.size} {prefix.replace('-', ' ')}tokens, "
            for prefix, vocabulary in self._task.vocabularies.items()
        )
        self._console.print(
            f"{config.task} on {config.corpus}: {config.network_name}, {_parameter_count(state.network):,} parameters, "
            f"{tokens}{config.steps} steps"
        )
        if state.precision != config.precision:
            self._console.print(f"this processor does not support {config.precision}: training in {state.precision}")

    def _train_until(self, end: int, minutes: float | None, interrupted: Interruption, log: TextIO) -> None:
        config, state = self._config, self.state
        started, before = time.monotonic(), self.seconds
        with self._progress() as progress:
            bar = progress.add_task("training", total=config.steps, completed=state.step, shown="")
            tokens_read, since = 0, time.monotonic()
            while state.step < end and not interrupted:
                if minutes is not None and time.monotonic() - started > minutes * 60:
                    self._console.print(f"stopped after {minutes} minutes, as requested")
                    break
                loss, norm, read = state.train_step()
                tokens_read += read
                if state.step % _LOG_EVERY == 0:
                    speed = tokens_read / (time.monotonic() - since)
                    tokens_read, since = 0, time.monotonic()
                    write_record(log, step=state.step, nats=loss, bits=loss / math.log(2), gradient_norm=norm,
                                 learning_rate=state.last_learning_rate, tokens_per_second=round(speed),
                                 seconds=round(self.seconds, 1))  # fmt: skip
                    progress.update(bar, shown=f"{loss:.3f} nats  {speed:,.0f} tokens/s")
                progress.update(bar, completed=state.step)
                self.seconds = before + time.monotonic() - started
                if state.step % config.validate_every == 0 or state.step == config.steps:
                    self._validate(log)
                    state.save(self._folder)

    @torch.no_grad()
    def _validate(self, log: TextIO, *, scheduled: bool = True) -> None:
        state = self.state
        validation = self._task.validate(state.average, rows=_VALIDATION_ROWS)
        criterion = validation.nats if validation.criterion is None else validation.criterion
        better = criterion < state.best_criterion
        if better:
            weights = {name: value.clone() for name, value in state.average.state_dict().items()}
            save_tensors(self._folder / BEST, weights, {"step": state.step})
        if scheduled:
            state.validated_step = state.step
            write_record(log, step=state.step, seconds=round(self.seconds, 1), **validation.as_metrics())
            if better:
                state.best, state.best_criterion, state.best_step = weights, criterion, state.step
        accuracy = "" if validation.accuracy is None else f", accuracy {validation.accuracy:.1%}"
        self._console.print(
            f"step {state.step}: held out {validation.nats:.4f} nats, {validation.bits:.4f} bits "
            f"per {self._task.unit}{accuracy}{' (kept)' if better else ''}"
        )

    @torch.no_grad()
    def _finish(self, *, stopped: bool) -> Result:
        """Measure the kept weights and write the result."""
        state, average = self.state, self.state.average
        tensors, metadata = load_tensors(self._folder / BEST)
        average.load_state_dict(tensors)
        validation = self._task.validate(average, rows=1)
        finished = state.step >= self._config.steps
        measured: dict[str, float] = {}
        if finished:
            with self._progress() as progress:
                bar = progress.add_task("testing", total=1000, shown="")
                measured = self._task.test(
                    average,
                    lambda what, share: progress.update(bar, description=what, completed=int(1000 * share)),
                )
        summary = {
            "step": state.step,
            "kept_step": metadata["step"],
            "finished": finished,
            "parameters": _parameter_count(state.network),
            **validation.as_metrics(),
            **measured,
        }
        replace_file(self._folder / RESULT, lambda part: part.write_text(json.dumps(summary, indent=2) + "\n"))
        draw_loss_curve(self._folder / METRICS, self._folder / CURVE, self._task.unit)
        return Result(state.step, finished, stopped, validation, measured)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )


def _printing(console: Console) -> Note:
    """Print notes about a corpus. They hold names of files and labels, which are not interpreted as markup."""
    return lambda note: console.print(Text(note), soft_wrap=True)


def _parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
