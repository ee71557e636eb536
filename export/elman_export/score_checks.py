"""The checks that outputs with a meaning are logits."""

from __future__ import annotations

from pathlib import Path

import onnx

from elman_bundle.scores import LOGITS_ARE_SCORED, are_probabilities, find_normalisation
from elman_export.contract import StepInterface, Tensors
from elman_export.export_error import ExportError


def check_logits(outputs: Tensors) -> None:
    """Check that outputs are not the probabilities of alternatives.

    Args:
        outputs: the outputs with a meaning, of several rows.

    Raises:
        ExportError: one is.
    """
    for name, value in outputs.items():
        if value.dim() == 2 and are_probabilities(value.numpy()):
            raise _refused(name, "has rows of probabilities that add up to 1")


def check_last_nodes(interface: StepInterface, graph: Path) -> None:
    """Check that no output comes from an operator that makes probabilities.

    Args:
        interface: what the step returns; all its outputs have a meaning.
        graph: the file of the step's graph.

    Raises:
        ExportError: one does.
    """
    model = onnx.load(graph)
    for name in interface.outputs:
        node = find_normalisation(model, name)
        if node is not None:
            raise _refused(name, f"comes from {node.op_type}")


def _refused(name: str, what: str) -> ExportError:
    remedy = "Return what goes into softmax or sigmoid, or the logarithm of the probabilities"
    return ExportError(f"step(): the output {name!r} {what}; {LOGITS_ARE_SCORED}. {remedy}")
