"""The largest magnitudes of a step graph's tensors, as far as the graph itself determines them.

A tensor that no operator bounds has no entry; its magnitude can only be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from elman_export.contract import StepModule
from elman_export.export_error import ExportError
from elman_export.graph_names import state_input_name, state_output_name

# The magnitude of their results is at most 1.
_UNIT = {"Cos", "Erf", "Hardmax", "HardSigmoid", "Sigmoid", "Sin", "Softmax", "Softsign", "Tanh"}
# Their results are values of their first input, with or without a change of sign, or zeros.
_SELECTING = {
    "Abs", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Neg", "Relu", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
# Their results are values of any of their inputs.
_MIXING = {"Concat", "Max", "Min"}


def declared_bounds(module: StepModule) -> dict[str, float]:
    """The `state_bounds` of a module, by the names of its states in the graph.

    Raises:
        ExportError: a name is not that of a state, or a bound is not positive and finite.
    """
    states = module.initial_state(1)
    bounds: dict[str, float] = {}
    for name, bound in getattr(module, "state_bounds", {}).items():
        if name not in states:
            raise ExportError(f"state_bounds names {name!r}, but initial_state() has {sorted(states)}")
        if not 0 < bound < math.inf:
            raise ExportError(f"state_bounds: {name}: got {bound}; the largest magnitude must be above 0 and finite")
        bounds[state_input_name(name)] = bounds[state_output_name(name)] = float(bound)
    return bounds


def find_bounds(model: onnx.ModelProto, known: Mapping[str, float]) -> dict[str, float]:
    """Derive the largest magnitude of every tensor that has one.

    Sums are left out: a sum of bounded tensors is bounded, but it seldom comes near its bound, so measuring it gives a
    finer scale.

    Args:
        model: a step graph.
        known: the bounds of some of its tensors, such as states.

    Returns:
        The bounds by the names of the tensors.
    """
    bounds = dict(known)
    for weight in model.graph.initializer:
        largest = _largest_magnitude(weight)
        if 0 < largest < math.inf:
            bounds[weight.name] = largest
    for node in model.graph.node:
        bound = _bound_of(node, bounds)
        if bound is not None:
            for name in node.output:
                bounds[name] = min(bound, bounds.get(name, math.inf))
    return bounds


def _bound_of(node: onnx.NodeProto, bounds: Mapping[str, float]) -> float | None:
    if node.domain:
        return None
    if node.op_type in _UNIT:
        return 1.0
    read = [bounds.get(name) for name in node.input]
    if node.op_type in _SELECTING:
        return read[0]
    if node.op_type == "Where":
        read = read[1:]
    elif node.op_type not in _MIXING | {"Mul"}:
        return None
    known = [bound for bound in read if bound is not None]
    if len(known) < len(read):
        return None
    return math.prod(known) if node.op_type == "Mul" else max(known)


def _largest_magnitude(weight: onnx.TensorProto) -> float:
    if weight.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        return 0.0
    return float(np.abs(numpy_helper.to_array(weight)).max(initial=0))
