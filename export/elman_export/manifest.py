"""The manifest of an exported module, and the files of its vocabularies and initial states."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from elman_bundle import write_tokens, write_vocabulary
from elman_export.contract import Labels, NextToken, Output, Source, StepInterface, StepModule, Tensors, Token
from elman_export.examples import Example, make_sources
from elman_export.export_error import ExportError
from elman_export.graph_names import LENGTHS, SOURCE, constant_name, state_input_name, state_output_name
from elman_protos import v1
from elman_protos.element_types import ELEMENT_TYPES

STEP_FILE = "step.onnx"
ENCODER_FILE = "encoder.onnx"
_LABELS_FILE = "labels.json"
_INITIAL_STATE_FILE = "initial_state.safetensors"
_DATA_TYPES: dict[torch.dtype, v1.DataType.ValueType] = {
    getattr(torch, row.name): row.data_type for row in ELEMENT_TYPES
}
_SCOPES = {"sequence": v1.LABEL_SCOPE_SEQUENCE, "step": v1.LABEL_SCOPE_STEP}


def describe_module(
    module: StepModule,
    interface: StepInterface,
    example: Example,
    outputs: Tensors,
    encoded: Collection[str],
    folder: Path,
) -> v1.ModelSpec:
    """Make the manifest of a module, without name, description and metrics.

    Args:
        module: the module.
        interface: what its step reads and returns.
        example: arguments of a step, for shapes and types.
        outputs: the outputs of that step.
        encoded: the states that `encode` returns, by their names in the graph.
        folder: where the files of vocabularies and initial states are written.

    Raises:
        ExportError: an element type cannot be served, or the initial states of two rows differ.
    """
    spec = v1.ModelSpec(manifest_version=1, step=v1.StepSpec(file=STEP_FILE))
    if interface.source is not None:
        _add_encoder(spec, interface.source, folder)
    if interface.tree is not None:
        spec.step.tree.child_count = interface.tree.children
        spec.step.tree.inner_token_id = interface.tree.inner_id
    for name, kind in interface.inputs.items():
        tensor = example.inputs[name]
        added = spec.step.inputs.add(name=name, data_type=_data_type(tensor), shape=tensor.shape[1:])
        if isinstance(kind, Token):
            added.token.vocabulary = "text"
            _add_vocabulary(spec, "text", kind, folder)
    for name, tensor in example.constants.items():
        constant = spec.step.constants.add(
            name=constant_name(name), data_type=_data_type(tensor), shape=tensor.shape[1:]
        )
        if interface.source is not None and interface.constants[name].variable_length:
            constant.variable_length = True
            constant.shape[0] = interface.source.longest
    _add_states(spec, module, encoded, folder)
    for name, meaning in interface.outputs.items():
        _add_output(spec, name, meaning, outputs[name], folder)
    return spec


def _add_encoder(spec: v1.ModelSpec, source: Source, folder: Path) -> None:
    spec.encoder.file, spec.encoder.length_name, spec.encoder.longest_source = ENCODER_FILE, LENGTHS, source.longest
    one = make_sources(source, rows=1, seed=0).values
    spec.encoder.input.name, spec.encoder.input.data_type = SOURCE, _data_type(one)
    spec.encoder.input.shape.extend(one.shape[2:])
    if isinstance(source.kind, Token):
        spec.encoder.input.token.vocabulary = "source"
        _add_vocabulary(spec, "source", source.kind, folder)


def _add_vocabulary(spec: v1.ModelSpec, name: str, token: Token, folder: Path) -> None:
    added = spec.vocabularies.add()
    added.CopyFrom(write_vocabulary(folder, token.vocabulary, "" if name == "text" else f"{name}-"))
    added.name = name
    for field, value in (("begin_token_id", token.begin_id), ("end_token_id", token.end_id)):
        if value is not None:
            setattr(added, field, value)


def _add_states(spec: v1.ModelSpec, module: StepModule, encoded: Collection[str], folder: Path) -> None:
    files: dict[str, Tensor] = {}
    for name, rows in module.initial_state(2).items():
        value = rows[0].detach()
        if not torch.equal(value, rows[1]):
            raise ExportError(f"initial_state(2): the rows of {name} differ; every sequence must start from the same")
        state = spec.step.states.add(
            input_name=state_input_name(name),
            output_name=state_output_name(name),
            data_type=_data_type(value),
            shape=value.shape,
        )
        if state.input_name in encoded:
            state.encoded = True
        elif bool((value == value.flatten()[0]).all()):
            if value.flatten()[0] != 0:
                state.fill = float(value.flatten()[0])
        else:
            state.file = _INITIAL_STATE_FILE
            files[state_input_name(name)] = value.contiguous()
    if files:
        # Not save_file, which makes the file readable for its owner alone.
        (folder / _INITIAL_STATE_FILE).write_bytes(save(files))


def _add_output(spec: v1.ModelSpec, name: str, meaning: Output, value: Tensor, folder: Path) -> None:
    added = spec.step.outputs.add(name=name, data_type=_data_type(value), shape=value.shape[1:])
    if isinstance(meaning, NextToken):
        added.next_token_logits.vocabulary = "text"
    elif isinstance(meaning, Labels):
        added.label_logits.vocabulary = "labels"
        added.label_logits.scope = _SCOPES[meaning.scope]
        spec.vocabularies.add(name="labels", kind=v1.VOCABULARY_KIND_LABELS, file=_LABELS_FILE, size=len(meaning.names))
        write_tokens(folder / _LABELS_FILE, list(meaning.names))


def _data_type(tensor: Tensor) -> v1.DataType.ValueType:
    if tensor.dtype not in _DATA_TYPES:
        raise ExportError(f"{tensor.dtype} cannot be served; use one of {[str(known) for known in _DATA_TYPES]}")
    return _DATA_TYPES[tensor.dtype]
