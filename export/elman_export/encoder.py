"""From a module's `encode` to a graph of its own, and the proof that it computes the same whatever stands beside or
behind a source.

The graph's inputs are named "source" and "lengths"; its outputs have the names that constants and states have as inputs
of the step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from elman_export.contract import EncoderModule, Source
from elman_export.export_error import ExportError
from elman_export.graph import (
    Arrays,
    Sources,
    as_arrays,
    constant_name,
    make_sources,
    run_encoder,
    run_graph,
    save_graph,
    state_input_name,
)
from elman_export.parity import allow_padding, compare, padding_difference

SOURCE, LENGTHS = "source", "lengths"

_CHECKED_ROWS = (1, 2, 5, 17)


class _Traced(nn.Module):
    def __init__(self, module: EncoderModule, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        constants, states = self.module.encode(source, lengths)
        found = {constant_name(name): value for name, value in constants.items()}
        found |= {state_input_name(name): value for name, value in states.items()}
        return tuple(found[name] for name in self.names)


def write_encoder(module: EncoderModule, source: Source, path: Path) -> None:
    """Export `encode` to `path`, with the numbers of rows and of positions left open.

    Raises:
        ExportError: torch cannot express it in ONNX.
    """
    sources = make_sources(source, rows=3, seed=0, longest=min(source.longest, 5))
    names = tuple(run_encoder(module, sources))
    rows = torch.export.Dim("rows")
    # A dimension of which only one size is allowed would be none.
    positions = {1: torch.export.Dim("positions")} if source.longest > 1 else {}
    save_graph(
        _Traced(module, names).eval(),
        {SOURCE: sources.values, LENGTHS: sources.lengths},
        list(names),
        ({0: rows, **positions}, {0: rows}),
        path,
        what="encode()",
    )
    _forget_sizes(path)


def _forget_sizes(path: Path) -> None:
    """Take out the shapes that the exporter noted: of what whole recurrent operators give it notes the traced size."""
    model = onnx.load(path)
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    onnx.save(model, path)


def check_encoder(session: onnxruntime.InferenceSession, module: EncoderModule, source: Source) -> tuple[float, float]:
    """Compare torch and onnxruntime on sources of lengths that were not traced, and each source with itself alone.

    Returns:
        the largest difference between the two, and the largest that padding makes, 0 where it makes none.

    Raises:
        ExportError: they differ, or a source's result depends on what stands beside it.
    """
    worst = padded = 0.0
    for rows in _CHECKED_ROWS:
        for longest in sorted({1, min(3, source.longest), min(23, source.longest)}):
            sources = make_sources(source, rows, seed=rows, longest=longest)
            found = run_graph(session, as_arrays({SOURCE: sources.values, LENGTHS: sources.lengths}))
            batch = f"with {rows} sources of up to {longest} positions"
            worst = max(worst, compare(as_arrays(run_encoder(module, sources)), found, batch, method="encode()"))
            padded = max(padded, _check_alone(session, sources, found))
    return worst, padded


def _check_alone(session: onnxruntime.InferenceSession, sources: Sources, together: Arrays) -> float:
    worst = 0.0
    for row, length in enumerate(sources.lengths.tolist()):
        one = as_arrays({SOURCE: sources.values[row : row + 1, :length], LENGTHS: sources.lengths[row : row + 1]})
        for name, value in run_graph(session, one).items():
            beside = together[name][row]
            positions = value.shape[1:2] == (length,) and beside.shape != value.shape[1:]
            if positions and np.any(beside[length:]):
                raise ExportError(f"{name}: is not zero behind a source's end; encode() must mask it")
            there = beside[:length] if positions else beside
            if there.shape != value.shape[1:]:
                raise ExportError(f"{name}: has shape {beside.shape} beside longer sources and {value.shape[1:]} alone")
            worst = max(worst, padding_difference(value[0], there))
    return allow_padding(
        worst,
        "encode(): a source's result differs by {} alone and beside others; does it compute across rows, or from the "
        "padding behind a source?",
    )
