"""Comparing the inputs and outputs of a graph with the manifest."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import onnxruntime

from elman_bundle import Bundle
from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.errors import ModelLoadError

_OPEN = "rows"
_ANY = 2  # children: an axis of more than one position has to be open
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
    variable = {constant.name for constant in step.constants if constant.variable_length}
    if step.HasField("tree"):
        named_in |= {state.input_name: _of_children(state, step.tree) for state in step.states}
        variable |= set() if step.tree.child_count else {state.input_name for state in step.states}
    _check_side(bundle.graph_path, "input", session.get_inputs(), named_in, positions=variable)
    _check_side(bundle.graph_path, "output", session.get_outputs(), named_out)


def _of_children(state: v1.StateSpec, tree: v1.TreeSpec) -> v1.StateSpec:
    """The state input of a node: the states of its children."""
    given = v1.StateSpec()
    given.CopyFrom(state)
    given.shape.insert(0, tree.child_count or _ANY)
    return given


def check_encoder(bundle: Bundle, path: Path, session: onnxruntime.InferenceSession) -> None:
    """Compare the encoder's graph with the manifest.

    Raises:
        ModelLoadError: names the tensor that is missing or different.
    """
    encoder, step = bundle.spec.encoder, bundle.spec.step
    source = v1.InputSpec()
    source.CopyFrom(encoder.input)
    source.shape.insert(0, encoder.longest_source)
    lengths = v1.InputSpec(name=encoder.length_name, data_type=v1.DATA_TYPE_INT64)
    named_in: dict[str, TensorSpec] = {source.name: source, lengths.name: lengths}
    named_out: dict[str, TensorSpec] = {constant.name: constant for constant in step.constants}
    named_out |= {state.input_name: state for state in step.states if state.HasField("encoded")}
    _check_side(path, "input", session.get_inputs(), named_in, positions={source.name})
    variable = {constant.name for constant in step.constants if constant.variable_length}
    _check_side(path, "output", session.get_outputs(), named_out, positions=variable)


def _check_side(
    path: Path,
    side: str,
    nodes: Iterable[onnxruntime.NodeArg],
    specs: dict[str, TensorSpec],
    positions: Collection[str] = (),
) -> None:
    """Compare the inputs or the outputs of a graph with the manifest. The first axis of the shape of `positions` has to
    be open, unless there is one position only."""
    found = {node.name: node for node in nodes}
    for name, spec in specs.items():
        if name not in found:
            what = "state's next value" if isinstance(spec, v1.StateSpec) and side == "output" else side
            raise ModelLoadError(
                f"{path}: the manifest names the {what} {name!r}, but the graph's {side}s are "
                f"{', '.join(sorted(found))}"
            )
        node = found[name]
        shape: list[Any] = list(spec.shape)
        if name in positions and shape[0] > 1:
            shape[0] = _OPEN
        shape.insert(spec.row_axis, _OPEN)
        expected = element_type(spec.data_type)
        if node.type != expected.onnxruntime_type:
            raise ModelLoadError(f"{path}: {side} {name!r} is {node.type}, the manifest says {expected.name}")
        if not _shapes_agree(node.shape, shape):
            raise ModelLoadError(
                f"{path}: {side} {name!r} has shape {node.shape}, the manifest says {shape}; "
                f"the {'row axis and the next one' if name in positions else 'row axis'} must be open"
            )
    unlisted = found.keys() - specs.keys()
    if side == "input" and unlisted:
        raise ModelLoadError(
            f"{path}: the graph needs the input {min(unlisted)!r}, which the manifest does not mention"
        )


def _shapes_agree(graph: list[Any] | None, manifest: list[Any]) -> bool:
    """A graph may leave a size open (a name or nothing); the row axis it must leave open."""
    if graph is None:
        return True
    return len(graph) == len(manifest) and all(
        not isinstance(ours, int) if theirs == _OPEN else not isinstance(ours, int) or ours == theirs
        for ours, theirs in zip(graph, manifest, strict=True)
    )
