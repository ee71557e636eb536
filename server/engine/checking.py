"""What a graph has, compared with what its manifest says it has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime

from bundle import Bundle
from elman import v1
from server.engine.errors import ModelLoadError
from server.engine.unrolling import DTYPES

_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
TensorSpec = v1.InputSpec | v1.ConstantSpec | v1.StateSpec | v1.OutputSpec


def check_graph(bundle: Bundle, session: onnxruntime.InferenceSession) -> None:
    """Compare the step's graph with the manifest.

    Raises:
        ModelLoadError: names the tensor that is missing or different.
    """
    step = bundle.spec.step
    named_in: dict[str, TensorSpec] = {
        **{tensor.name: tensor for tensor in step.inputs},
        **{tensor.name: tensor for tensor in step.constants},
        **{state.input_name: state for state in step.states},
    }
    named_out: dict[str, TensorSpec] = {
        **{tensor.name: tensor for tensor in step.outputs},
        **{state.output_name: state for state in step.states},
    }
    _check_side(bundle, "input", session.get_inputs(), named_in)
    _check_side(bundle, "output", session.get_outputs(), named_out)
    unlisted = {node.name for node in session.get_inputs()} - named_in.keys()
    if unlisted:
        raise ModelLoadError(
            f"{bundle.graph_path}: the graph needs the input {min(unlisted)!r}, which the manifest does not mention"
        )


def _check_side(bundle: Bundle, side: str, nodes: Iterable[onnxruntime.NodeArg], specs: dict[str, TensorSpec]) -> None:
    found = {node.name: node for node in nodes}
    for name, spec in specs.items():
        if name not in found:
            what = "state's next value" if isinstance(spec, v1.StateSpec) and side == "output" else side
            raise ModelLoadError(
                f"{bundle.graph_path}: the manifest names the {what} {name!r}, but the graph's {side}s are "
                f"{', '.join(sorted(found))}"
            )
        node = found[name]
        shape: list[Any] = list(spec.shape)
        shape.insert(spec.row_axis, "rows")
        if _ONNX_TYPES.get(node.type) is not DTYPES[spec.data_type]:
            raise ModelLoadError(
                f"{bundle.graph_path}: {side} {name!r} is {node.type}, the manifest says "
                f"{np.dtype(DTYPES[spec.data_type])}"
            )
        if not _shapes_agree(node.shape, shape):
            raise ModelLoadError(
                f"{bundle.graph_path}: {side} {name!r} has shape {node.shape}, the manifest says {shape}; "
                "the row axis must be open"
            )


def _shapes_agree(graph: list[Any] | None, manifest: list[Any]) -> bool:
    """A graph may leave a size open (a name or nothing), but the row axis it must."""
    if graph is None:
        return True
    return len(graph) == len(manifest) and all(
        not isinstance(ours, int) if theirs == "rows" else not isinstance(ours, int) or ours == theirs
        for ours, theirs in zip(graph, manifest, strict=True)
    )
