"""The step of a trained run: our own network behind the same contract as anybody's module."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.contract import Labels, NextToken, Output, Tensors, Token
from export.writer import export_bundle
from training.checkpoint import BEST, RESULT, load_best, load_config, load_labels, load_tensors, load_vocabulary
from training.config import TrainingConfig
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

    def initial_state(self, rows: int) -> Tensors:
        return self.network.initial_state(rows)

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        logits, after = self.network.step_from_projected(functional.embedding(inputs["token"], self.table), state)
        return {"logits": logits}, after


def export_run(run: Path, folder: Path, *, name: str, overwrite: bool = False) -> str:
    """Export the best weights of a training run.

    Returns:
        The bundle's digest.

    Raises:
        TrainingError: the folder holds no run, or one that has kept no weights yet.
        ExportError: the graph does not compute what torch does.
    """
    config = load_config(run)
    return export_bundle(
        NetworkStep(load_best(run)),
        folder,
        name=name,
        inputs={"token": Token(load_vocabulary(run, config))},
        outputs={"logits": _meaning(run, config)},
        description=_DESCRIPTIONS[config.task],
        metrics=_metrics(run),
        provenance={
            "producer": f"elman {version('elman')}",
            "corpus": Path(config.corpus).name,
            "network": f"{config.layers} x {config.cell}, {config.hidden} units",
        },
        overwrite=overwrite,
    )


def _metrics(run: Path) -> dict[str, float]:
    """What the kept weights measured, unless the run was ended before it could say."""
    if not (run / RESULT).exists():
        return {}
    result = json.loads((run / RESULT).read_text())
    if result["kept_step"] != load_tensors(run / BEST)[1]["step"]:
        return {}
    return {key: float(value) for key, value in result.items() if not isinstance(value, bool)}


def _meaning(run: Path, config: TrainingConfig) -> Output:
    labels = load_labels(run, config)
    if labels is None:
        return NextToken()
    return Labels(labels, "step" if config.task == "tag" else "sequence")
