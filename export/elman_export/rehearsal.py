"""A step graph run over inputs like those it will meet, from where sequences start: how large its tensors become, and
how far two graphs part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from elman_export.contract import EncoderModule, Input, Source, StepModule, Values
from elman_export.export_error import ExportError
from elman_export.graph import (
    Arrays,
    as_arrays,
    constant_name,
    make_example,
    make_sources,
    open_session,
    run_encoder,
    run_graph,
    state_input_name,
    state_output_name,
)

_RANDOM_ROWS = 16
_RANDOM_STEPS = 64
# What is served may be a little larger than what was seen; beyond this share it is cut off.
_MARGIN = 1.1
_ROUNDING = 1.001  # A bound of exact arithmetic is not broken by the last bit of float32.


@dataclass(frozen=True)
class Rehearsal:
    """Some sequences, from their start on.

    Attributes:
        steps: the inputs of each step, by the names they have in the graph.
        start: the constants and the initial state, likewise.
        state_names: the states' own names.
    """

    steps: Sequence[Arrays]
    start: Arrays
    state_names: tuple[str, ...]

    def run(self, session: onnxruntime.InferenceSession) -> Iterator[Arrays]:
        """What a graph gives at each step, its own states carried on."""
        carried = dict(self.start)
        for inputs in self.steps:
            found = run_graph(session, {**inputs, **carried})
            carried |= {state_input_name(name): found[state_output_name(name)] for name in self.state_names}
            yield found


def make_rehearsal(
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
    calibration: Mapping[str, Tensor] | None,
    source: Source | None = None,
) -> Rehearsal:
    """Sequences of the caller's, or random ones.

    Args:
        module: what the graph was made of.
        inputs: what its inputs are.
        constants: what its constants are.
        calibration: every input as [B, T, *shape] and every constant as [B, *shape], by name.
        source: what its encoder reads, if it has one; random sources are read then.

    Raises:
        ExportError: the calibration does not have the inputs' names, types and shapes.
    """
    if calibration is None:
        examples = [make_example(module, inputs, constants, _RANDOM_ROWS, seed) for seed in range(_RANDOM_STEPS)]
        given = {name: torch.stack([example.inputs[name] for example in examples], dim=1) for name in inputs}
        given |= examples[0].constants
    else:
        given = dict(calibration)
        _check_calibration(given, module, inputs, constants)
    # What reads no inputs has one step.
    rows, length = next(((len(given[name]), given[name].shape[1]) for name in inputs), (_RANDOM_ROWS, 1))
    state = module.initial_state(rows)
    start = {constant_name(name): given[name] for name in constants}
    start |= {state_input_name(name): value for name, value in state.items()}
    if source is not None:
        assert isinstance(module, EncoderModule)
        start |= run_encoder(module, make_sources(source, rows, seed=0, longest=source.longest))
    steps = [as_arrays({name: given[name][:, step].contiguous() for name in inputs}) for step in range(length)]
    return Rehearsal(steps, as_arrays(start), tuple(state))


def _check_calibration(
    given: Mapping[str, Tensor], module: StepModule, inputs: Mapping[str, Input], constants: Mapping[str, Values]
) -> None:
    if given.keys() != inputs.keys() | constants.keys():
        raise ExportError(
            f"calibration has {sorted(given)}, but the step reads {sorted(inputs.keys() | constants.keys())}"
        )
    rows, length = next((given[name].shape[:2] if given[name].dim() > 1 else (0, 0)) for name in inputs)
    example = make_example(module, inputs, constants, rows=1, seed=0)
    for name, value in given.items():
        one = example.inputs[name] if name in inputs else example.constants[name]
        shape = [rows, length, *one.shape[1:]] if name in inputs else [rows, *one.shape[1:]]
        if list(value.shape) != shape or value.dtype != one.dtype or not value.numel():
            wanted = ["B", "T", *one.shape[1:]] if name in inputs else ["B", *one.shape[1:]]
            raise ExportError(
                f"calibration: {name} is {value.dtype} {list(value.shape)}, but must be {one.dtype} "
                f"[{', '.join(map(str, wanted))}], with the same B and T for all"
            )


def measure_bounds(model: onnx.ModelProto, names: Sequence[str], rehearsal: Rehearsal) -> dict[str, float]:
    """The largest magnitude that tensors had over a rehearsal, and a margin.

    Raises:
        ExportError: one is not finite.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    there = {output.name for output in model.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in there
    )
    largest = dict.fromkeys(names, 0.0)
    for found in rehearsal.run(open_session(probe.SerializeToString())):
        for name in names:
            largest[name] = max(largest[name], float(np.abs(found[name]).max()))
    for name, value in largest.items():
        if not np.isfinite(value):
            raise ExportError(f"{name} becomes {value} within {len(rehearsal.steps)} steps; it cannot be quantized")
    # What was always zero has no range: any will do.
    return {name: value * _MARGIN or 1.0 for name, value in largest.items()}


def check_bounds(session: onnxruntime.InferenceSession, bounds: Mapping[str, float], rehearsal: Rehearsal) -> None:
    """Check bounds of states that a module has declared.

    Raises:
        ExportError: a state goes beyond its own.
    """
    for step, found in enumerate(chain([rehearsal.start], rehearsal.run(session))):
        for name in found.keys() & bounds.keys():
            largest = float(np.abs(found[name]).max())
            if largest > bounds[name] * _ROUNDING:
                raise ExportError(
                    f"{name} reaches {largest:.4g} after {step} steps, but state_bounds says {bounds[name]:.4g} at most"
                )


def largest_difference(
    one: onnxruntime.InferenceSession, other: onnxruntime.InferenceSession, outputs: Sequence[str], rehearsal: Rehearsal
) -> float:
    """How far the outputs of two graphs part over a rehearsal in which each carries its own states."""
    worst = 0.0
    for ours, theirs in zip(rehearsal.run(one), rehearsal.run(other), strict=True):
        for name in outputs:
            difference = ours[name].astype(np.float64) - theirs[name].astype(np.float64)
            worst = max(worst, float(np.abs(difference).max()))
    return worst
