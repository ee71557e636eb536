"""Running an exported graph with onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_export.contract import Tensors
from elman_export.export_error import ExportError

Arrays = dict[str, NDArray[np.generic]]


def open_session(graph: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a graph, from a file or serialized, on the CPU.

    Raises:
        ExportError: onnxruntime rejects the graph.
    """
    try:
        return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime rejects the exported graph: {error}") from error


def run_graph(session: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    """Run a graph.

    Args:
        session: the graph.
        feeds: arrays by name, [B, ...]; names that the graph does not read are ignored.

    Returns:
        All outputs by name.

    Raises:
        ExportError: the graph fails.
    """
    known = {argument.name for argument in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    rows = len(next(iter(feeds.values())))
    try:
        found = session.run(names, {name: value for name, value in feeds.items() if name in known})
    except Exception as error:
        raise ExportError(
            f"the exported graph fails with {rows} rows: is the number of rows fixed somewhere in step()? ({error})"
        ) from error
    return dict(zip(names, found, strict=True))


def as_arrays(tensors: Tensors) -> Arrays:
    """The same values as numpy arrays."""
    return {name: value.detach().numpy() for name, value in tensors.items()}
