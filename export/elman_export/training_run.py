"""From a training run to a bundle."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rich.console import Console
from torch import nn

from elman_bundle import load_bundle
from elman_export.bundle_export import export_bundle
from elman_export.contract import Labels, NextToken, Output
from elman_export.export_error import ExportError
from elman_export.network_steps import NetworkStep, step_of_network
from elman_export.quantization_loss import HeldOutPart
from elman_training.checkpoint import (
    BEST,
    load_best,
    load_config,
    load_labels,
    load_result,
    load_tensors,
    load_vocabularies,
)
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

    With quantization, both graphs are measured on the held-out part of the run's corpus. Calibration data is not
    needed: every product of these networks reads hidden states, which lie in (-1, 1), token vectors, which are known,
    or the context of attention, a weighted mean of hidden states, for which random sources suffice. An encoder stays
    float32.

    Args:
        run: the folder of the run.
        folder: the folder of the bundle to write.
        name: the model's name, by which requests select it.
        overwrite: replace an existing bundle.
        quantize: "int8", or None for float32.
        console: where the cost of quantization is reported, or why it is unknown.

    Returns:
        The digest of the bundle.

    Raises:
        TrainingError: the folder holds no run, one that has kept no weights yet, or a damaged one.
        ExportError: the graph does not compute what torch does, or the network cannot be quantized.
    """
    config = load_config(run)
    module, interface = step_of_network(load_best(run), load_vocabularies(run, config), config, _meaning(run, config))
    console = console or Console(quiet=True)
    held_out = None if quantize is None else _held_out_part(run, module, config, console)
    digest = export_bundle(
        module,
        folder,
        name=name,
        inputs=interface.inputs,
        outputs=interface.outputs,
        constants=interface.constants,
        source=interface.source,
        tree=interface.tree,
        description=_DESCRIPTIONS[config.task],
        metrics=_metrics(run),
        provenance=_provenance(config),
        overwrite=overwrite,
        quantize=quantize,
        evaluate=None if held_out is None else held_out.measure,
    )
    if held_out is not None:
        console.print(held_out.report(load_bundle(folder).spec.metrics), soft_wrap=True)
    return digest


def _held_out_part(run: Path, module: nn.Module, config: TrainingConfig, console: Console) -> HeldOutPart | None:
    """The held-out part; None with a note if the corpus is gone, because a bundle is useful without its loss, too."""
    if not isinstance(module, NetworkStep | EncoderDecoder):
        raise ExportError(f"{run}: only networks that go step by step become int8, not {config.network_name}")
    try:
        return HeldOutPart(run, module, console)
    except TrainingError as error:
        console.print(f"int8: its loss on held-out text cannot be measured: {error}", soft_wrap=True)
        return None


def _provenance(config: TrainingConfig) -> dict[str, str]:
    return {
        "producer": f"elman {version('elman')}",
        "corpus": Path(config.corpus).name,
        "network": config.network_name,
    }


def _metrics(run: Path) -> dict[str, float]:
    """The measurements of the kept weights; empty if the run was killed before it wrote them."""
    result = load_result(run)
    if result is None or result.get("kept_step") != load_tensors(run / BEST)[1]["step"]:
        return {}
    return {key: value for key, value in result.items() if not isinstance(value, bool)}


def _meaning(run: Path, config: TrainingConfig) -> Output:
    labels = load_labels(run)
    if labels is None:
        return NextToken()
    return Labels(labels, "step" if config.task == "tag" else "sequence")
