"""The step of a trained run: our own network behind the same contract as anybody's module."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from bundle import load_bundle
from export.contract import Labels, NextToken, Output, Tensors, Token
from export.held_out import HeldOut
from export.writer import export_bundle
from training.checkpoint import BEST, RESULT, load_best, load_config, load_labels, load_tensors, load_vocabularies
from training.config import TrainingConfig
from training.errors import TrainingError
from training.network import RecurrentNetwork

_DESCRIPTIONS = {
    "lm": "Continues text, one token a step.",
    "classify": "Classifies a whole text.",
    "tag": "Labels every step of a text.",
}


class NetworkStep(nn.Module):
    """A RecurrentNetwork's step with the embedding folded into the first layer's input gates.

    What the first layer computes from a token before it meets the state depends on the token alone, so it is looked
    up: one row of a [V, gates * H] table instead of an embedding and a matrix product.
    """

    table: Tensor

    def __init__(self, network: RecurrentNetwork) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            self.register_buffer("table", network.cells[0].project(network.embedding.weight))
        self.state_bounds = network.state_bounds

    def initial_state(self, rows: int) -> Tensors:
        return self.network.initial_state(rows)

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        logits, after = self.network.step_from_projected(functional.embedding(inputs["token"], self.table), state)
        return {"logits": logits}, after


def export_run(
    run: Path,
    folder: Path,
    *,
    name: str,
    overwrite: bool = False,
    quantize: Literal["int8"] | None = None,
    console: Console | None = None,
) -> str:
    """Export the best weights of a training run.

    Quantized, both graphs are measured on the held-out part of the run's corpus. Nothing has to be calibrated: every
    product of our networks reads hidden states, which lie in (-1, 1).

    Args:
        run: the folder of the run.
        folder: the bundle's folder to make.
        name: the model's name, by which requests choose it.
        overwrite: replace a bundle that is there already.
        quantize: "int8", or None for float32.
        console: where to tell what quantizing costs, or why that is not known.

    Returns:
        The bundle's digest.

    Raises:
        TrainingError: the folder holds no run, or one that has kept no weights yet.
        ExportError: the graph does not compute what torch does.
    """
    config = load_config(run)
    network = load_best(run)
    assert isinstance(network, RecurrentNetwork)
    module = NetworkStep(network)
    console = console or Console(quiet=True)
    held_out = None if quantize is None else _held_out(run, module, console)
    digest = export_bundle(
        module,
        folder,
        name=name,
        inputs={"token": Token(load_vocabularies(run, config)[""])},
        outputs={"logits": _meaning(run, config)},
        description=_DESCRIPTIONS[config.task],
        metrics=_metrics(run),
        provenance={
            "producer": f"elman {version('elman')}",
            "corpus": Path(config.corpus).name,
            "network": config.network_name,
        },
        overwrite=overwrite,
        quantize=quantize,
        evaluate=None if held_out is None else held_out.measure,
    )
    if held_out is not None:
        console.print(held_out.report(load_bundle(folder).spec.metrics), soft_wrap=True)
    return digest


def _held_out(run: Path, module: NetworkStep, console: Console) -> HeldOut | None:
    """A bundle is worth having without its loss too, so that a corpus which has gone is told and no error."""
    try:
        return HeldOut(run, module, console)
    except TrainingError as error:
        console.print(f"int8: its loss on held-out text cannot be measured: {error}", soft_wrap=True)
        return None


def _metrics(run: Path) -> dict[str, float]:
    """What the kept weights measured, unless the run was ended before it could say."""
    if not (run / RESULT).exists():
        return {}
    result = json.loads((run / RESULT).read_text())
    if result["kept_step"] != load_tensors(run / BEST)[1]["step"]:
        return {}
    return {key: float(value) for key, value in result.items() if not isinstance(value, bool)}


def _meaning(run: Path, config: TrainingConfig) -> Output:
    labels = load_labels(run)
    if labels is None:
        return NextToken()
    return Labels(labels, "step" if config.task == "tag" else "sequence")
