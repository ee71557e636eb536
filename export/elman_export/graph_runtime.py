"""Running an exported graph with onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_export.contract import Tensors
from elman_export.export_error import ExportError
from elman_export.module_calls import count_rows

_FATAL = 4  # What onnxruntime prints less than that is in the exceptions that it raises, too.

Arrays = dict[str, NDArray[np.generic]]


class GraphError(ExportError):
    """onnxruntime rejects an exported graph, or cannot run it."""


def open_session(graph: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a graph, from a file or serialized, on the CPU.

    Raises:
        GraphError: onnxruntime rejects the graph.
    """
    try:
        # As bytes, because onnxruntime's errors name the file, and that of a draft is gone when they are read.
        content = graph.read_bytes() if isinstance(graph, Path) else graph
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise GraphError(f"onnxruntime rejects the exported graph: {error}") from error


def run_graph(session: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    """Run a graph.

    Args:
        session: the graph.
        feeds: arrays by name, [B, ...]; names that the graph does not read are ignored.

    Returns:
        All outputs by name.

    Raises:
        GraphError: the graph fails.
    """
    known = {argument.name for argument in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    rows = len(next(iter(feeds.values())))
    try:
        found = session.run(names, {name: value for name, value in feeds.items() if name in known})
    except Exception as error:
        raise GraphError(f"onnxruntime cannot run the exported graph with {count_rows(rows)}: {error}") from error
    return dict(zip(names, found, strict=True))


def as_arrays(tensors: Tensors) -> Arrays:
    """The same values as numpy arrays."""
    return {name: value.detach().numpy() for name, value in tensors.items()}
