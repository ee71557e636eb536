"""How large the tensors of a step graph can become, as far as the graph itself says it.

What no operator bounds has no entry; how large that becomes can only be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from elman_export.contract import StepModule
from elman_export.export_error import ExportError
from elman_export.graph import state_input_name, state_output_name

# Their results have a magnitude of 1 at most, whatever they read.
_UNIT = {"Cos", "Erf", "Hardmax", "HardSigmoid", "Sigmoid", "Sin", "Softmax", "Softsign", "Tanh"}
# Their results are values of their first input, whose signs may change or which may become zero.
_SELECTING = {
    "Abs", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Neg", "Relu", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
# Their results are values of any of their inputs.
_MIXING = {"Concat", "Max", "Min"}


def declared_bounds(module: StepModule) -> dict[str, float]:
    """A module's own `state_bounds`, by the names that its states have in the graph.

    Raises:
        ExportError: they name no state, or are no magnitudes.
    """
    states = module.initial_state(1)
    bounds: dict[str, float] = {}
    for name, bound in getattr(module, "state_bounds", {}).items():
        if name not in states:
            raise ExportError(f"state_bounds names {name!r}, but initial_state() has {sorted(states)}")
        if not 0 < bound < math.inf:
            raise ExportError(f"state_bounds: {name} is {bound}, but a largest magnitude is above 0 and finite")
        bounds[state_input_name(name)] = bounds[state_output_name(name)] = float(bound)
    return bounds


def find_bounds(model: onnx.ModelProto, known: Mapping[str, float]) -> dict[str, float]:
    """The largest magnitude of every tensor that has one.

    Sums are left out although a sum of bounded tensors is bounded: it seldom comes near, so what is measured is finer.

    Args:
        model: a step graph.
        known: bounds of some of its tensors, such as states.
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
