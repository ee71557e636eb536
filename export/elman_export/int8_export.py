"""The precision of a bundle's graph, and the conversion of a float32 graph to int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import nn

from elman_export.calibration import check_bounds, largest_difference, make_calibration_run, measure_bounds
from elman_export.contract import StepInterface, StepModule, Tensors
from elman_export.graph_runtime import open_session
from elman_export.parity import check_independence, check_padding
from elman_export.quantization import find_products, quantize
from elman_export.value_bounds import declared_bounds, find_bounds

# A measurement of a graph, called with the name of its precision and a session on it.
Evaluate = Callable[[str, onnxruntime.InferenceSession], Mapping[str, float]]


def precision_of(module: nn.Module) -> str:
    """The precision of a graph that is exported without quantization: "fp16" or "fp32"."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return "fp16" if kinds == {torch.float16} else "fp32"


def quantize_graph(
    module: StepModule,
    interface: StepInterface,
    path: Path,
    calibration: Tensors | None,
    evaluate: Evaluate | None,
) -> dict[str, float]:
    """Replace a graph by its int8 form.

    Args:
        module: the module that the graph was exported from.
        interface: what its step reads and returns.
        path: the file of the graph.
        calibration: see `export_bundle`.
        evaluate: see `export_bundle`.

    Returns:
        The differences between both graphs, as metrics.

    Raises:
        ExportError: there is nothing to quantize, a declared bound or the calibration is wrong, or a row of the new
            graph depends on its batch.
    """
    plain, plain_session = onnx.load(path), open_session(path)
    products = find_products(plain)
    run = make_calibration_run(module, interface, calibration)
    declared = declared_bounds(module)
    check_bounds(plain_session, declared, run)
    bounds = find_bounds(plain, declared)
    unknown = sorted({product.input for product in products} - bounds.keys())
    if unknown:
        bounds |= measure_bounds(plain, unknown, run)
    path.write_bytes(quantize(plain, products, bounds).SerializeToString())
    session = open_session(path)
    check_independence(session, module, interface)
    if interface.source is not None:
        check_padding(session, module, interface)
    difference = largest_difference(plain_session, session, tuple(interface.outputs), run)
    metrics = {"quantization_largest_difference": difference}
    if evaluate is not None:
        for precision, measured in (("fp32", plain_session), ("int8", session)):
            metrics |= {f"{precision}_{name}": value for name, value in evaluate(precision, measured).items()}
    return metrics
