"""The precision of a bundle's graph: what it is, and how a float32 graph becomes an int8 one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import nn

from elman_export.bounds import declared_bounds, find_bounds
from elman_export.contract import Input, Output, Source, StepModule, Tensors, Values
from elman_export.graph import open_session
from elman_export.parity import check_independence, check_padding
from elman_export.quantization import find_products, quantize
from elman_export.rehearsal import check_bounds, largest_difference, make_rehearsal, measure_bounds

# A measure of a graph, called with the name of its precision and a session on it.
Evaluate = Callable[[str, onnxruntime.InferenceSession], Mapping[str, float]]


def precision_of(module: nn.Module) -> str:
    """What the manifest says of a graph that is exported as it is."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return "fp16" if kinds == {torch.float16} else "fp32"


def quantize_graph(
    module: StepModule,
    path: Path,
    inputs: Mapping[str, Input],
    outputs: Mapping[str, Output],
    constants: Mapping[str, Values],
    calibration: Tensors | None,
    evaluate: Evaluate | None,
    source: Source | None = None,
) -> dict[str, float]:
    """Put the int8 form of the graph at `path` in its place.

    Returns:
        How the two differ, as metrics.

    Raises:
        ExportError: there is nothing to quantize, a declared bound or the calibration is wrong, or a row of the new
            graph depends on its batch.
    """
    plain, plain_session = onnx.load(path), open_session(path)
    products = find_products(plain)
    rehearsal = make_rehearsal(module, inputs, constants, calibration, source)
    declared = declared_bounds(module)
    check_bounds(plain_session, declared, rehearsal)
    bounds = find_bounds(plain, declared)
    unknown = sorted({product.input for product in products} - bounds.keys())
    if unknown:
        bounds |= measure_bounds(plain, unknown, rehearsal)
    path.write_bytes(quantize(plain, products, bounds).SerializeToString())
    session = open_session(path)
    check_independence(session, module, inputs, constants, source)
    if source is not None:
        check_padding(session, module, inputs, constants, source)
    metrics = {"quantization_largest_difference": largest_difference(plain_session, session, tuple(outputs), rehearsal)}
    if evaluate is not None:
        for precision, measured in (("fp32", plain_session), ("int8", session)):
            metrics |= {f"{precision}_{name}": value for name, value in evaluate(precision, measured).items()}
    return metrics
