"""Calibration: running a step graph over typical sequences to find how large its tensors become."""

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

from elman_export.contract import EncoderModule, StepInterface, StepModule
from elman_export.examples import make_example, make_sources, run_encoder
from elman_export.export_error import ExportError
from elman_export.graph_names import constant_name, state_input_name, state_output_name
from elman_export.graph_runtime import Arrays, as_arrays, open_session, run_graph

_RANDOM_ROWS = 16
_RANDOM_STEPS = 64
_MARGIN = 1.1  # factor by which served values may exceed the calibrated ones; larger values are clipped
_ROUNDING = 1.001  # factor; float32 rounding does not violate a bound of exact arithmetic


@dataclass(frozen=True)
class CalibrationRun:
    """Sequences from their start on.

    Attributes:
        steps: the inputs of each step, by their names in the graph.
        start: the constants and the initial state, by their names in the graph.
        state_names: the module's names of the states.
    """

    steps: Sequence[Arrays]
    start: Arrays
    state_names: tuple[str, ...]

    def run(self, session: onnxruntime.InferenceSession) -> Iterator[Arrays]:
        """The outputs of a graph at each step, with its own states carried over."""
        carried = dict(self.start)
        for inputs in self.steps:
            found = run_graph(session, {**inputs, **carried})
            carried |= {state_input_name(name): found[state_output_name(name)] for name in self.state_names}
            yield found


def make_calibration_run(
    module: StepModule, interface: StepInterface, calibration: Mapping[str, Tensor] | None
) -> CalibrationRun:
    """Prepare the caller's sequences, or random ones.

    Args:
        module: the module that the graph was exported from.
        interface: what its step reads; sources are always random.
        calibration: every input as [B, T, *shape] and every constant as [B, *shape], by name; None for random ones.

    Raises:
        ExportError: the calibration does not have the names, types and shapes of the inputs.
    """
    inputs, constants = interface.inputs, interface.constants
    if calibration is None:
        without_encoder = StepInterface(inputs, constants=constants)
        examples = [make_example(module, without_encoder, _RANDOM_ROWS, seed) for seed in range(_RANDOM_STEPS)]
        given = {name: torch.stack([example.inputs[name] for example in examples], dim=1) for name in inputs}
        given |= examples[0].constants
    else:
        given = dict(calibration)
        _check_calibration(given, module, interface)
    # A step without inputs is run once.
    rows, length = next(((len(given[name]), given[name].shape[1]) for name in inputs), (_RANDOM_ROWS, 1))
    state = module.initial_state(rows)
    start = {constant_name(name): given[name] for name in constants}
    start |= {state_input_name(name): value for name, value in state.items()}
    if interface.source is not None:
        assert isinstance(module, EncoderModule)
        sources = make_sources(interface.source, rows, seed=0, longest=interface.source.longest)
        start |= run_encoder(module, sources)
    steps = [as_arrays({name: given[name][:, step].contiguous() for name in inputs}) for step in range(length)]
    return CalibrationRun(steps, as_arrays(start), tuple(state))


def _check_calibration(given: Mapping[str, Tensor], module: StepModule, interface: StepInterface) -> None:
    inputs, constants = interface.inputs, interface.constants
    if given.keys() != inputs.keys() | constants.keys():
        raise ExportError(
            f"calibration has {sorted(given)}, but the step reads {sorted(inputs.keys() | constants.keys())}"
        )
    rows, length = next((given[name].shape[:2] if given[name].dim() > 1 else (0, 0)) for name in inputs)
    example = make_example(module, interface, rows=1, seed=0)
    for name, value in given.items():
        one = example.inputs[name] if name in inputs else example.constants[name]
        shape = [rows, length, *one.shape[1:]] if name in inputs else [rows, *one.shape[1:]]
        if list(value.shape) != shape or value.dtype != one.dtype or not value.numel():
            axes = ["B", "T", *one.shape[1:]] if name in inputs else ["B", *one.shape[1:]]
            raise ExportError(
                f"calibration: {name} is {value.dtype} {list(value.shape)}, but must be {one.dtype} "
                f"[{', '.join(map(str, axes))}], with the same B and T for all"
            )


def measure_bounds(model: onnx.ModelProto, names: Sequence[str], calibration: CalibrationRun) -> dict[str, float]:
    """The largest magnitude of tensors over a calibration run, with a margin.

    Raises:
        ExportError: a tensor is not finite.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in known
    )
    largest = dict.fromkeys(names, 0.0)
    for found in calibration.run(open_session(probe.SerializeToString())):
        for name in names:
            largest[name] = max(largest[name], float(np.abs(found[name]).max()))
    for name, value in largest.items():
        if not np.isfinite(value):
            raise ExportError(f"{name} becomes {value} within {len(calibration.steps)} steps; it cannot be quantized")
    # A tensor that was always zero may have any range.
    return {name: value * _MARGIN or 1.0 for name, value in largest.items()}


def check_bounds(
    session: onnxruntime.InferenceSession, bounds: Mapping[str, float], calibration: CalibrationRun
) -> None:
    """Check the bounds that a module declares for its states.

    Raises:
        ExportError: a state exceeds its bound.
    """
    for step, found in enumerate(chain([calibration.start], calibration.run(session))):
        for name in found.keys() & bounds.keys():
            largest = float(np.abs(found[name]).max())
            if largest > bounds[name] * _ROUNDING:
                raise ExportError(
                    f"{name} reaches {largest:.4g} after {step} steps, but state_bounds says {bounds[name]:.4g} at most"
                )


def largest_difference(
    first: onnxruntime.InferenceSession,
    second: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    calibration: CalibrationRun,
) -> float:
    """The largest difference between the outputs of two graphs, each with its own states carried over."""
    worst = 0.0
    for one, other in zip(calibration.run(first), calibration.run(second), strict=True):
        for name in outputs:
            difference = one[name].astype(np.float64) - other[name].astype(np.float64)
            worst = max(worst, float(np.abs(difference).max()))
    return worst
