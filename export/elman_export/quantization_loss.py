"""The cost of quantizing a trained model: the loss of both graphs, by onnxruntime, on the same held-out text."""

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
from elman_export.graph_names import constant_name, state_input_name, state_output_name
from elman_export.graph_runtime import as_arrays, run_graph
from elman_training.cells.stack import at_last_step
from elman_training.checkpoint import LAST, load_config, load_tensors
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.families import make_task
from elman_training.training_error import TrainingError

# Enough to distinguish thousandths of a nat between two graphs that read the same, in a matter of seconds.
_ROWS = 64  # of a text
_EXAMPLES = 2_000


class HeldOutPart:
    """The held-out part of a run's corpus, to measure graphs of its network on.

    Args:
        run: the folder of the run.
        module: the step that the graphs were exported from.
        console: where progress is shown.

    Raises:
        TrainingError: the corpus cannot be read any more, or is not the run's.
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
        """Measure a graph.

        Args:
            precision: the precision of the graph, for the progress line.
            session: the graph.

        Returns:
            The mean loss in nats and, for labels, the accuracy.
        """
        with self._progress(TextColumn("step {task.completed:,.0f}")) as progress:
            line = progress.add_task(f"{precision} on held-out text", total=None)
            kind = _DecoderGraph if isinstance(self._module, EncoderDecoder) else _SequenceGraph
            graph = kind(session, self._module, partial(progress.advance, line))
            found = self._task.validate(graph, rows=_ROWS)
        measured = {"validation_nats": found.nats}
        if self._task.labels is None or found.accuracy is None:
            return measured
        return {**measured, "validation_accuracy": found.accuracy}

    def report(self, metrics: Mapping[str, float]) -> str:
        """One line for people that compares the measurements of both graphs."""
        int8, fp32 = metrics["int8_validation_nats"], metrics["fp32_validation_nats"]
        more = round(int8 - fp32, 4) + 0.0  # No "-0.0000".
        line = f"int8: {int8:.4f} nats on held-out text, fp32 {fp32:.4f} ({more:+.4f})"
        if self._task.labels is None:
            return line
        int8, fp32 = metrics["int8_validation_accuracy"], metrics["fp32_validation_accuracy"]
        return f"{line}; accuracy {int8:.2%}, fp32 {fp32:.2%}"

    def _progress(self, *columns: ProgressColumn) -> Progress:
        columns = SpinnerColumn(), TextColumn("{task.description}"), *columns, TimeElapsedColumn()
        return Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)


class _Graph:
    """A step graph that runs over whole sequences and carries its own states."""

    def __init__(self, session: onnxruntime.InferenceSession, module: Any, advance: Callable[[], None]) -> None:
        self._session = session
        self._module = module
        self._advance = advance

    def run(self, tokens: Tensor, constants: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        """Token ids [B, T], the constants and the state to logits [B, T, V] and the last state."""
        fixed = as_arrays({constant_name(name): value for name, value in constants.items()})
        carried = as_arrays({state_input_name(name): value for name, value in state.items()})
        logits = []
        for ids in np.ascontiguousarray(tokens.numpy().T):
            found = run_graph(self._session, {"token": ids, **fixed, **carried})
            carried = {state_input_name(name): found[state_output_name(name)] for name in state}
            logits.append(torch.from_numpy(found["logits"]))
            self._advance()
        after = {name: torch.from_numpy(carried[state_input_name(name)]) for name in state}
        return torch.stack(logits, dim=1), after


class _SequenceGraph(_Graph):
    """A graph in place of the network that it was exported from; it reads step by step."""

    def initial_state(self, rows: int) -> Tensors:
        return cast(Tensors, self._module.initial_state(rows))

    def __call__(self, tokens: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        return self.run(tokens, {}, state)

    def last_logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        logits, _ = self(tokens, self.initial_state(len(tokens)))
        return at_last_step(logits, lengths)


class _DecoderGraph(_Graph):
    """A decoder's graph with the network's own encoder, which is not quantized."""

    def __call__(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        logits, _ = self.run(target, *self._module.start(source, lengths))
        return logits
