"""From a trained run to a bundle."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rich.console import Console

from elman_bundle import load_bundle
from elman_export.contract import Labels, NextToken, Output
from elman_export.export_error import ExportError
from elman_export.held_out import HeldOut
from elman_export.networks import NetworkStep, as_module
from elman_export.writer import export_bundle
from elman_training.checkpoint import BEST, RESULT, load_best, load_config, load_labels, load_tensors, load_vocabularies
from elman_training.config import TrainingConfig
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.training_error import TrainingError

_DESCRIPTIONS = {
    "lm": "Continues text, one token a step.",
    "classify": "Classifies a whole text.",
    "tag": "Labels every step of a text.",
    "features": "Classifies numbers.",
    "tree": "Labels a tree as a whole, and every part of it.",
    "translate": "Reads a text and writes another one.",
}


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
    product of our networks reads hidden states, which lie in (-1, 1), vectors of tokens, which are known, or what
    attention finds, a weighted mean of hidden states, for which random sources do. An encoder stays float32.

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
        ExportError: the graph does not compute what torch does, or the network is none that can be quantized.
    """
    config = load_config(run)
    exported = as_module(load_best(run), load_vocabularies(run, config), config)
    console = console or Console(quiet=True)
    held_out = None
    if quantize is not None:
        if not isinstance(exported.module, NetworkStep | EncoderDecoder):
            raise ExportError(f"{run}: only networks that go step by step become int8, not {config.network_name}")
        held_out = _held_out(run, exported.module, console)
    digest = export_bundle(
        exported.module,
        folder,
        name=name,
        inputs=exported.inputs,
        outputs={"logits": _meaning(run, config)},
        constants=exported.constants,
        source=exported.source,
        tree=exported.tree,
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


def _held_out(run: Path, module: NetworkStep | EncoderDecoder, console: Console) -> HeldOut | None:
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
