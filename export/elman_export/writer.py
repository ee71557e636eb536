"""From a step module to a bundle. What is written has been checked; what fails a check is not written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from elman_bundle import MANIFEST, write_bundle, write_tokens, write_vocabulary
from elman_export.contract import (
    EncoderModule,
    Input,
    Labels,
    NextToken,
    Output,
    Source,
    StepModule,
    Tensors,
    Token,
    Tree,
    Values,
)
from elman_export.encoder import LENGTHS, SOURCE, check_encoder, write_encoder
from elman_export.export_error import ExportError
from elman_export.graph import (
    constant_name,
    make_example,
    make_sources,
    open_session,
    run_encoder,
    run_step,
    state_input_name,
    state_output_name,
    write_graph,
)
from elman_export.parity import check_independence, check_padding, check_parity
from elman_export.precision import Evaluate, precision_of, quantize_graph
from elman_export.trees import check_tree, check_tree_independence, check_tree_parity
from elman_protos import v1
from elman_protos.element_types import ELEMENT_TYPES

_GRAPH = "step.onnx"
_ENCODER = "encoder.onnx"
_LABELS = "labels.json"
_INITIAL_STATE = "initial_state.safetensors"
_DATA_TYPES: dict[torch.dtype, v1.DataType.ValueType] = {
    getattr(torch, row.name): row.data_type for row in ELEMENT_TYPES
}
_SCOPES = {"sequence": v1.LABEL_SCOPE_SEQUENCE, "step": v1.LABEL_SCOPE_STEP}


def export_bundle(
    module: nn.Module,
    folder: str | Path,
    *,
    name: str,
    inputs: Mapping[str, Input],
    outputs: Mapping[str, Output],
    constants: Mapping[str, Values] | None = None,
    source: Source | None = None,
    tree: Tree | None = None,
    description: str = "",
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, str] | None = None,
    overwrite: bool = False,
    quantize: Literal["int8"] | None = None,
    calibration: Tensors | None = None,
    evaluate: Evaluate | None = None,
) -> str:
    """Export a step module as a bundle that `elman serve` serves.

    Before anything is written, torch and onnxruntime are compared from a non-zero state, over several steps and at
    batch sizes that were not traced, and every row must come out the same to the bit whatever rows are beside it.

    With `quantize="int8"` the products of what was compared are then turned into products of 8-bit integers, three to
    four times as fast on processors that have instructions for it, and rows are checked again. How large the numbers
    that enter a product may become is derived from the step (a tanh stays within 1), read off the module's
    `state_bounds` (see StepModule), or else measured over `calibration` with a tenth to spare.

    Args:
        module: has `initial_state` and `step`; see StepModule.
        folder: the bundle's folder to make.
        name: the model's name, by which requests choose it.
        inputs: what each of the step's inputs is.
        outputs: what each of the step's outputs means; outputs that are not listed are left out of the graph.
        constants: what stays for the whole sequence.
        source: what the module's `encode` reads; see EncoderModule. It then gives the constants, and a step may have no
            inputs: its sequences have one step.
        tree: that a row is a node of a tree, and how many children it has. Then trees of random shapes are compared,
            nodes of all numbers of children side by side.
        description: what the model does, for people.
        metrics: figures to keep with the model.
        provenance: where it comes from.
        overwrite: replace a bundle that is there already.
        quantize: "int8", or None for the module's own precision.
        calibration: sequences as they will be met, from their start on: every input as [B, T, *shape] and every
            constant as [B, *shape], by name; without it, random ones.
        evaluate: measures a graph, if it is to be quantized: called with "fp32" and "int8" and a session on that
            graph. The figures it returns are kept as metrics named "fp32_..." and "int8_...".

    Returns:
        The bundle's digest.

    Raises:
        ExportError: the module does not keep the contract, the graph does not compute what the module does, or it has
            nothing to quantize.
    """
    folder = Path(folder)
    if folder.exists() and not (overwrite and (folder / MANIFEST).exists()):
        why = "it is no bundle, so it stays" if overwrite else "overwrite=True, or --force, replaces a bundle"
        raise ExportError(f"{folder} exists already: {why}")
    if quantize not in (None, "int8"):
        raise ExportError(f"quantize is {quantize!r}, but there is only 'int8'")
    if quantize is None and (calibration is not None or evaluate is not None):
        raise ExportError("calibration and evaluate belong to quantize='int8'; without it nothing is done with them")
    if not isinstance(module, StepModule):
        raise ExportError(
            f"{type(module).__name__} needs the methods initial_state(rows) and step(inputs, constants, state)"
        )
    if tree is not None:
        check_tree(module, tree, inputs, outputs, constants or {}, source, quantize)
    if source is not None and not isinstance(module, EncoderModule):
        raise ExportError(
            f"{type(module).__name__} needs the method encode(source, lengths), because there is a source"
        )
    if source is not None and calibration is not None:
        raise ExportError("calibration is for steps without an encoder; with one random sources are read")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        draft = Path(temporary) / "bundle"
        draft.mkdir()
        spec = _write_files(module, draft, inputs, outputs, constants or {}, source, tree)
        if quantize is not None:
            spec.metrics.update(
                quantize_graph(module, draft / _GRAPH, inputs, outputs, constants or {}, calibration, evaluate, source)
            )
        spec.name, spec.description = name, description
        spec.provenance["precision"] = quantize or precision_of(module)
        spec.metrics.update(metrics or {})
        spec.provenance.update(provenance or {})
        digest = write_bundle(draft, spec)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    return digest


def _write_files(
    module: nn.Module,
    folder: Path,
    inputs: Mapping[str, Input],
    outputs: Mapping[str, Output],
    constants: Mapping[str, Values],
    source: Source | None,
    tree: Tree | None,
) -> v1.ModelSpec:
    assert isinstance(module, StepModule)
    was_training = module.training
    module.eval()
    try:
        variable = frozenset(constant_name(name) for name, kind in constants.items() if kind.variable_length)
        example = make_example(module, inputs, constants, 3, 0, source, tree)
        values, _ = run_step(module, example)
        encoded: Collection[str] = ()
        if source is not None:
            assert isinstance(module, EncoderModule)
            encoded = run_encoder(module, make_sources(source, rows=1, seed=0))
        missing = outputs.keys() - values.keys()
        if missing:
            raise ExportError(f"step() returns the outputs {sorted(values)}; {sorted(missing)[0]!r} is not among them")
        write_graph(module, example, tuple(outputs), folder / _GRAPH, variable)
        session = open_session(folder / _GRAPH)
        if tree is None:
            difference = check_parity(session, module, inputs, constants, source)
            check_independence(session, module, inputs, constants, source)
        else:
            difference = check_tree_parity(session, module, inputs, tree)
            check_tree_independence(session, module, inputs, tree)
        padding = 0.0
        if source is not None:
            assert isinstance(module, EncoderModule)
            write_encoder(module, source, folder / _ENCODER)
            unlike, padding = check_encoder(open_session(folder / _ENCODER), module, source)
            difference = max(difference, unlike)
            padding = max(padding, check_padding(session, module, inputs, constants, source))
    finally:
        module.train(was_training)

    spec = v1.ModelSpec(manifest_version=1, step=v1.StepSpec(file=_GRAPH))
    spec.metrics["parity_largest_difference"] = difference
    if source is not None:
        spec.metrics["padding_largest_difference"] = padding
        _add_encoder(spec, source, folder)
    if tree is not None:
        spec.step.tree.child_count, spec.step.tree.inner_token_id = tree.children, tree.inner_id
    for input_name, kind in inputs.items():
        tensor = example.inputs[input_name]
        added = spec.step.inputs.add(name=input_name, data_type=_data_type(tensor), shape=tensor.shape[1:])
        if isinstance(kind, Token):
            added.token.vocabulary = "text"
            _add_vocabulary(spec, "text", kind, folder)
    for constant, tensor in example.constants.items():
        described = spec.step.constants.add(
            name=constant_name(constant), data_type=_data_type(tensor), shape=tensor.shape[1:]
        )
        if source is not None and constants[constant].variable_length:
            described.variable_length = True
            described.shape[0] = source.longest
    _add_states(spec, module, folder, encoded)
    for output_name, meaning in outputs.items():
        _add_output(spec, output_name, meaning, values[output_name], folder)
    return spec


def _add_encoder(spec: v1.ModelSpec, source: Source, folder: Path) -> None:
    spec.encoder.file, spec.encoder.length_name, spec.encoder.longest_source = _ENCODER, LENGTHS, source.longest
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


def _add_states(spec: v1.ModelSpec, module: StepModule, folder: Path, encoded: Collection[str]) -> None:
    files: dict[str, Tensor] = {}
    for name, rows in module.initial_state(2).items():
        value = rows[0].detach()
        if not torch.equal(value, rows[1]):
            raise ExportError(f"initial_state(2): the rows of {name} differ; every new sequence starts from the same")
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
            state.file = _INITIAL_STATE
            files[state_input_name(name)] = value.contiguous()
    if files:
        # Not save_file, which lets nobody but the owner read the file.
        (folder / _INITIAL_STATE).write_bytes(save(files))


def _add_output(spec: v1.ModelSpec, name: str, meaning: Output, value: Tensor, folder: Path) -> None:
    added = spec.step.outputs.add(name=name, data_type=_data_type(value), shape=value.shape[1:])
    if isinstance(meaning, NextToken):
        added.next_token_logits.vocabulary = "text"
    elif isinstance(meaning, Labels):
        added.label_logits.vocabulary = "labels"
        added.label_logits.scope = _SCOPES[meaning.scope]
        spec.vocabularies.add(name="labels", kind=v1.VOCABULARY_KIND_LABELS, file=_LABELS, size=len(meaning.names))
        write_tokens(folder / _LABELS, list(meaning.names))


def _data_type(tensor: Tensor) -> v1.DataType.ValueType:
    if tensor.dtype not in _DATA_TYPES:
        raise ExportError(f"{tensor.dtype} cannot be served; use one of {[str(known) for known in _DATA_TYPES]}")
    return _DATA_TYPES[tensor.dtype]
