"""From a module's `encode` to a graph of its own, and the check that it computes the same.

The result for a source must not depend on the other sources or on the padding. The graph's inputs are named "source"
and "lengths"; its outputs have the names that constants and states have as inputs of the step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from elman_export.contract import EncoderModule, Source
from elman_export.examples import Sources, make_sources, run_encoder
from elman_export.export_error import ExportError
from elman_export.graph_names import LENGTHS, SOURCE, constant_name, state_input_name
from elman_export.graph_runtime import Arrays, as_arrays, run_graph
from elman_export.parity import allow_padding, compare, padding_difference
from elman_export.step_export import save_graph
from elman_export.trace_failures import Traced

_TRACED_ROWS, _TRACED_POSITIONS = 3, 2
_CHECKED_ROWS = (1, 2, 5, 17)
_CHECKED_POSITIONS = (1, 3, 23)


class _FlatEncoder(nn.Module):
    """`encode` with flat results, as ONNX has them."""

    def __init__(self, module: EncoderModule, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        source, lengths = tensors
        constants, states = self.module.encode(source, lengths)
        found = {constant_name(name): value for name, value in constants.items()}
        found |= {state_input_name(name): value for name, value in states.items()}
        return tuple(found[name] for name in self.names)


def write_encoder(module: EncoderModule, source: Source, path: Path) -> None:
    """Export `encode` with any number of rows and positions.

    Args:
        module: the module.
        source: what it reads.
        path: the file to write.

    Raises:
        ExportError: torch cannot express `encode` in ONNX.
    """
    sources = make_sources(source, rows=_TRACED_ROWS, seed=0, longest=min(source.longest, _TRACED_POSITIONS))
    names = tuple(run_encoder(module, sources))
    rows = torch.export.Dim("rows")
    # torch refuses a dimension that can have only one size.
    positions = {1: torch.export.Dim("positions")} if source.longest > 1 else {}
    save_graph(
        Traced(
            "encode()",
            _FlatEncoder(module, names).eval(),
            {SOURCE: sources.values, LENGTHS: sources.lengths},
            {SOURCE: {0: rows, **positions}, LENGTHS: {0: rows}},
        ),
        list(names),
        path,
    )
    _remove_sizes(path)


def _remove_sizes(path: Path) -> None:
    """Remove the shapes that the exporter wrote: for results of recurrent operators it writes the traced sizes."""
    model = onnx.load(path)
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    onnx.save(model, path)


def check_encoder(session: onnxruntime.InferenceSession, module: EncoderModule, source: Source) -> tuple[float, float]:
    """Compare torch and onnxruntime at lengths that were not traced, and each source in a batch and alone.

    Returns:
        The largest difference between torch and onnxruntime, and the largest that padding makes.

    Raises:
        ExportError: a difference is too large, or the result of a source depends on the rest of the batch.
    """
    worst = padded = 0.0
    for rows in _CHECKED_ROWS:
        for longest in sorted({min(positions, source.longest) for positions in _CHECKED_POSITIONS}):
            sources = make_sources(source, rows, seed=rows, longest=longest)
            found = run_graph(session, as_arrays({SOURCE: sources.values, LENGTHS: sources.lengths}))
            batch = f"with {rows} sources of up to {longest} positions"
            worst = max(
                worst, compare(module, as_arrays(run_encoder(module, sources)), found, batch, method="encode()")
            )
            padded = max(padded, _check_alone(session, module, sources, found))
    return worst, padded


def _check_alone(
    session: onnxruntime.InferenceSession, module: EncoderModule, sources: Sources, batch: Arrays
) -> float:
    """Compare the results of a batch with those of each source alone; return the largest difference."""
    worst = 0.0
    for row, length in enumerate(sources.lengths.tolist()):
        one = as_arrays({SOURCE: sources.values[row : row + 1, :length], LENGTHS: sources.lengths[row : row + 1]})
        for name, alone in run_graph(session, one).items():
            in_batch = batch[name][row]
            has_positions = alone.shape[1:2] == (length,) and in_batch.shape != alone.shape[1:]
            if has_positions and np.any(in_batch[length:]):
                raise ExportError(f"{name}: is not zero after the end of a source; encode() must mask it")
            real = in_batch[:length] if has_positions else in_batch
            if real.shape != alone.shape[1:]:
                raise ExportError(
                    f"{name}: has shape {in_batch.shape} next to longer sources and {alone.shape[1:]} alone"
                )
            worst = max(worst, padding_difference(alone[0], real))
    return allow_padding(
        module,
        worst,
        "encode(): the result of a source differs by {} alone and in a batch; does it compute across rows, or from the "
        "padding after a source?",
    )
