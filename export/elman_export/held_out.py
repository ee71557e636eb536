"""What quantizing costs a trained model: the loss of both graphs, by onnxruntime, on the same held-out text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from elman_export.contract import StepModule, Tensors
from elman_export.graph import as_arrays, constant_name, run_graph, state_input_name, state_output_name
from elman_training.cells.stack import at_last_step
from elman_training.checkpoint import LAST, load_config, load_tensors
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.families import make_task
from elman_training.training_error import TrainingError

# A text is read in this many rows side by side, and of examples no more than these: a matter of seconds, and enough
# to tell thousandths of a nat apart between two graphs that read the same.
_LANES = 64
_EXAMPLES = 2_000


class HeldOut:
    """The held-out part of a run's corpus, for graphs of its network to be measured on.

    Args:
        run: the folder of the run.
        module: the step that the graphs were made of.
        console: where progress is shown.

    Raises:
        TrainingError: the corpus is not there any more, or is another one than the run's.
    """

    def __init__(self, run: Path, module: StepModule, console: Console) -> None:
        config = load_config(run)
        if config.task == "classify":
            config = config.model_copy(update={"validation_limit": min(config.validation_limit, _EXAMPLES)})
        self._console = console
        self._module = module
        with self._progress() as progress:
            progress.add_task(f"reading {config.corpus}", total=None)
            self._task = make_task(config)
            if load_tensors(run / LAST)[1].get("fingerprint") != self._task.fingerprint():
                raise TrainingError(f"{config.corpus}: is not what {run} was trained on")

    def measure(self, precision: str, session: onnxruntime.InferenceSession) -> dict[str, float]:
        """The mean loss, and for labels the share that is right."""
        with self._progress(TextColumn("step {task.completed:,.0f}")) as progress:
            shown = progress.add_task(f"{precision} on held-out text", total=None)
            make = _GraphTranslator if isinstance(self._module, EncoderDecoder) else _GraphReader
            reader = make(session, self._module, partial(progress.advance, shown))
            found = self._task.validate(reader, rows=_LANES)
        measured = {"validation_nats": found.nats}
        if self._task.labels is None or found.accuracy is None:
            return measured
        return {**measured, "validation_accuracy": found.accuracy}

    def report(self, metrics: Mapping[str, float]) -> str:
        """One line for people about what `measure` found for both."""
        ours, plain = metrics["int8_validation_nats"], metrics["fp32_validation_nats"]
        more = round(ours - plain, 4) + 0.0  # No "-0.0000".
        line = f"int8: {ours:.4f} nats on held-out text, fp32 {plain:.4f} ({more:+.4f})"
        if self._task.labels is None:
            return line
        ours, plain = metrics["int8_validation_accuracy"], metrics["fp32_validation_accuracy"]
        return f"{line}; right: {ours:.2%}, fp32 {plain:.2%}"

    def _progress(self, *columns: ProgressColumn) -> Progress:
        columns = SpinnerColumn(), TextColumn("{task.description}"), *columns, TimeElapsedColumn()
        return Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)


class _Graph:
    """A step graph that is run over whole sequences, carrying its own states on."""

    def __init__(self, session: onnxruntime.InferenceSession, module: Any, stepped: Callable[[], None]) -> None:
        self._session = session
        self._module = module
        self._stepped = stepped

    def run(self, tokens: Tensor, constants: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        """Token ids [B, T], the constants and the state to logits [B, T, V] and the last state."""
        kept = as_arrays({constant_name(name): value for name, value in constants.items()})
        carried = as_arrays({state_input_name(name): value for name, value in state.items()})
        logits = []
        for ids in np.ascontiguousarray(tokens.numpy().T):
            found = run_graph(self._session, {"token": ids, **kept, **carried})
            carried = {state_input_name(name): found[state_output_name(name)] for name in state}
            logits.append(torch.from_numpy(found["logits"]))
            self._stepped()
        after = {name: torch.from_numpy(carried[state_input_name(name)]) for name in state}
        return torch.stack(logits, dim=1), after


class _GraphReader(_Graph):
    """A graph in the place of the network it was made of: what it reads, it reads step by step."""

    def initial_state(self, rows: int) -> Tensors:
        return cast(Tensors, self._module.initial_state(rows))

    def __call__(self, tokens: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        return self.run(tokens, {}, state)

    def last_logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        logits, _ = self(tokens, self.initial_state(len(tokens)))
        return at_last_step(logits, lengths)


class _GraphTranslator(_Graph):
    """A decoder's graph in the place of the whole network. Its encoder is the network's own, which is exported as it
    is."""

    def __call__(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        logits, _ = self.run(target, *self._module.start(source, lengths))
        return logits
