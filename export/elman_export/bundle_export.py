"""From a step module to a bundle. Every graph is checked before it is written; a module that fails is not written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from torch import nn

from elman_bundle import MANIFEST, BundleError, write_bundle
from elman_export.contract import (
    EncoderModule,
    Input,
    Output,
    Source,
    StepInterface,
    StepModule,
    Tensors,
    Tree,
    Values,
)
from elman_export.encoder_export import check_encoder, write_encoder
from elman_export.examples import make_example, make_sources, run_encoder, run_step
from elman_export.export_error import ExportError
from elman_export.graph_names import check_names, constant_name
from elman_export.graph_runtime import GraphError, open_session
from elman_export.int8_export import Evaluate, precision_of, quantize_graph
from elman_export.interface_checks import check_descriptions, check_interface
from elman_export.manifest import ENCODER_FILE, STEP_FILE, describe_module
from elman_export.module_checks import TRACED_ROWS, check_calls, check_module, graph_remedy
from elman_export.module_snapshot import left_as_found
from elman_export.parity import check_independence, check_padding, check_parity
from elman_export.score_checks import check_last_nodes, check_logits
from elman_export.step_export import write_step
from elman_export.tree_parity import check_tree, check_tree_independence, check_tree_parity
from elman_protos import v1


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
    """Export a step module as a bundle for `elman serve`.

    Nothing is written before torch and onnxruntime agree over several steps and batch sizes, and every row has the same
    bytes in any batch. int8 computes products in 8-bit integers; the range of each value is derived from the step (a
    tanh stays within 1), taken from the module's `state_bounds`, or else measured with a margin of a tenth.

    Args:
        module: has `initial_state` and `step`; see StepModule.
        folder: the folder of the bundle to write.
        name: the model's name, by which requests select it.
        inputs: the kind of each input of the step.
        outputs: the meaning of each output; other outputs are not exported.
        constants: the kind of each constant.
        source: what the module's `encode` reads; see EncoderModule.
        tree: declares that rows are nodes of trees.
        description: what the model does, for people.
        metrics: figures to store with the model.
        provenance: where the model comes from.
        overwrite: replace an existing bundle.
        quantize: "int8", or None for the module's own precision.
        calibration: for int8, typical sequences from their start on: every input as [B, T, *shape] and every constant
            as [B, *shape], by name. By default, random ones.
        evaluate: for int8, called with "fp32" and "int8" and a session on that graph; its results are stored as metrics
            "fp32_..." and "int8_...".

    Returns:
        The digest of the bundle.

    Raises:
        ExportError: the module violates the contract, or its graph computes something else.
    """
    folder, interface = Path(folder), StepInterface(inputs, outputs, constants or {}, source, tree)
    _check_arguments(folder, overwrite, quantize, calibration, evaluate)
    check_descriptions(name, description, metrics, provenance)
    checked = _checked_module(module, interface, quantize, calibration)
    with left_as_found(module), _replacing(folder) as draft:
        check_calls(checked, interface)
        spec = _write_graphs(checked, interface, draft)
        if quantize is not None:
            spec.metrics.update(quantize_graph(checked, interface, draft / STEP_FILE, calibration, evaluate))
        _describe(
            spec, name, description, metrics, {"precision": quantize or precision_of(module), **(provenance or {})}
        )
        return write_bundle(draft, spec)


def _describe(
    spec: v1.ModelSpec, name: str, description: str, metrics: Mapping[str, float] | None, provenance: Mapping[str, str]
) -> None:
    spec.name, spec.description = name, description
    spec.metrics.update(metrics or {})
    spec.provenance.update(provenance)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A draft of a folder, which replaces the folder at the end unless an exception was raised.

    Raises:
        ExportError: the draft is no bundle. No error names the draft, which does not exist any more when it is read.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = f".{folder.name}-"
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=hidden) as temporary:
            draft = Path(temporary) / "bundle"
            draft.mkdir()
            try:
                yield draft
            except BundleError as error:
                raise ExportError(str(error).replace(str(draft), str(folder))) from error
            if folder.exists():
                shutil.rmtree(folder)
            draft.rename(folder)
    except OSError as error:
        if error.filename is not None and hidden in str(error.filename):
            error.filename = str(folder)
        raise


def _check_arguments(
    folder: Path, overwrite: bool, quantize: str | None, calibration: Tensors | None, evaluate: Evaluate | None
) -> None:
    if folder.exists() and not (overwrite and (folder / MANIFEST).exists()):
        why = "it is not a bundle, so it stays" if overwrite else "overwrite=True, or --force, replaces a bundle"
        raise ExportError(f"{folder} exists already: {why}")
    if quantize not in (None, "int8"):
        raise ExportError(f"quantize: got {quantize!r}; only 'int8' is supported")
    if quantize is None and (calibration is not None or evaluate is not None):
        raise ExportError("calibration and evaluate have no effect without quantize='int8'")


def _checked_module(
    module: nn.Module, interface: StepInterface, quantize: str | None, calibration: Tensors | None
) -> StepModule:
    checked = check_module(module)
    check_interface(interface)
    if interface.tree is not None:
        check_tree(checked, interface, quantize)
    if interface.source is not None and not isinstance(module, EncoderModule):
        raise ExportError(
            f"{type(module).__name__} needs the method encode(source, lengths), because there is a source"
        )
    if interface.source is not None and calibration is not None:
        raise ExportError("calibration is for steps without an encoder; with an encoder, random sources are read")
    return checked


def _write_graphs(module: StepModule, interface: StepInterface, folder: Path) -> v1.ModelSpec:
    """Write and check the graphs; return the manifest."""
    assert isinstance(module, nn.Module)
    example = make_example(module, interface, TRACED_ROWS, seed=0)
    check_names(example.inputs, example.constants, example.state, interface.outputs)
    outputs, _ = run_step(module, example, interface.outputs)
    check_logits({name: outputs[name] for name in interface.outputs})
    variable = frozenset(constant_name(name) for name, kind in interface.constants.items() if kind.variable_length)
    write_step(module, example, tuple(interface.outputs), folder / STEP_FILE, variable)
    check_last_nodes(interface, folder / STEP_FILE)
    try:
        measured = _check_graphs(module, interface, folder)
    except GraphError as error:
        raise ExportError(f"{error}{graph_remedy(module)}") from error
    encoded: set[str] = set()
    if interface.source is not None:
        assert isinstance(module, EncoderModule)
        encoded = set(run_encoder(module, make_sources(interface.source, rows=1, seed=0)))
    spec = describe_module(module, interface, example, outputs, encoded, folder)
    spec.metrics.update(measured)
    return spec


def _check_graphs(module: StepModule, interface: StepInterface, folder: Path) -> dict[str, float]:
    """Check the step's graph, and write and check that of the encoder.

    Returns:
        The differences, as metrics.
    """
    session = open_session(folder / STEP_FILE)
    if interface.tree is not None:
        difference = check_tree_parity(session, module, interface, interface.tree)
        check_tree_independence(session, module, interface, interface.tree)
        return {"parity_largest_difference": difference}
    difference = check_parity(session, module, interface)
    check_independence(session, module, interface)
    if interface.source is None:
        return {"parity_largest_difference": difference}
    assert isinstance(module, EncoderModule)
    write_encoder(module, interface.source, folder / ENCODER_FILE)
    of_encoder, padding = check_encoder(open_session(folder / ENCODER_FILE), module, interface.source)
    return {
        "parity_largest_difference": max(difference, of_encoder),
        "padding_largest_difference": max(padding, check_padding(session, module, interface)),
    }
