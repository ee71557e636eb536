"""Whether two graphs compute the same step: both run on the same random inputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto

from elman_bundle import Bundle
from elman_server.engine.nested_graphs import nodes_inside, opset_of
from elman_server.engine.trials.inputs import step_feeds
from elman_server.engine.trials.limits import run_limited
from elman_server.errors import EngineError

_DRAWS = ((2, 0.0), (3, 1.0), (1, 0.1), (5, 10.0))  # rows, and the standard deviation of the inputs
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 1e-2  # relative, or absolute below 1; of float16 the second one


@dataclass(frozen=True)
class Difference:
    """A value that differs between two graphs.

    Attributes:
        name: its name in both.
        size: the largest difference of two elements; infinite where shapes or types differ.
    """

    name: str
    size: float


class Comparison:
    """Compares graphs of a step.

    Args:
        bundle: the model.
        seconds: how long a run may take.
    """

    def __init__(self, bundle: Bundle, seconds: float) -> None:
        self._path, self._seconds = bundle.graph_path, seconds
        self._feeds = [
            step_feeds(bundle, rows, np.random.default_rng(seed), scale=scale)
            for seed, (rows, scale) in enumerate(_DRAWS)
        ]

    def difference(
        self, first: onnxruntime.InferenceSession, second: onnxruntime.InferenceSession
    ) -> Difference | None:
        """Returns the first output that differs, in the order of the first graph; None if none does.

        Raises:
            EngineError: a graph fails. Inputs for which the first one fails are not compared, if there are others.
            ModelLoadError: a run takes too long.
        """
        known = {output.name for output in second.get_outputs()}
        names = [output.name for output in first.get_outputs() if output.name in known]
        failure, compared = EngineError("nothing to compare"), False
        for feeds in self._feeds:
            try:
                expected = run_limited(first, names, feeds, path=self._path, seconds=self._seconds)
            except EngineError as error:
                failure = error
                continue
            found = run_limited(second, names, feeds, path=self._path, seconds=self._seconds)
            compared = True
            for name, one, other in zip(names, expected, found, strict=True):
                size = _difference(one, other)
                if size:
                    return Difference(name, size)
        if not compared:
            raise failure
        return None


def _difference(one: Any, other: Any) -> float:
    """The largest difference of two elements; 0 where all are within the tolerance."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return 0.0  # Sequences are only found within a graph.
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.inf
    if not np.issubdtype(one.dtype, np.number):
        return 0.0 if np.array_equal(one, other) else np.inf
    return _largest(one.astype(np.float64), other.astype(np.float64), half=one.dtype == np.float16)


def _largest(one: NDArray[np.float64], other: NDArray[np.float64], *, half: bool) -> float:
    tolerance = _HALF_TOLERANCE if half else _TOLERANCE
    with np.errstate(invalid="ignore"):
        differing = ~np.isclose(other, one, rtol=tolerance, atol=tolerance, equal_nan=True)
        differences = np.abs(one - other)[differing]
    return float(np.nan_to_num(differences, nan=np.inf).max(initial=0.0))


def with_all_values(model: ModelProto) -> ModelProto:
    """Make every value of a graph an output, in the order of its nodes."""
    named = [name for node in model.graph.node for name in node.output if name]
    own = [output for output in model.graph.output if output.name not in named]
    del model.graph.output[:]
    model.graph.output.extend([*(ValueInfoProto(name=name) for name in named), *own])
    return model


def name_of_operator(model: ModelProto, value: str, compared: Collection[str], opset: int) -> str:
    """The operator by which a value differs, for people.

    Args:
        model: the graph.
        value: the name of the first value that differs.
        compared: the values that were compared; what is between them may have another name in the converted graph.
        opset: the opset to which the graph was converted; of the nodes inside the operator, those are named whose
            definition has changed until then.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers[value]
    while between := [name for name in node.input if name in makers and name not in compared]:
        node = makers[between[0]]
    before = opset_of(model)
    inside = sorted({inner.op_type for inner in nodes_inside(node) if _has_changed(inner, before, opset)})
    name = f" {node.name!r}" if node.name else ""
    return f"the operator {node.op_type}{name}" + (f" (with {', '.join(inside)} inside)" if inside else "")


def _has_changed(node: NodeProto, before: int, after: int) -> bool:
    try:
        versions = {onnx.defs.get_schema(node.op_type, opset, node.domain).since_version for opset in (before, after)}
    except onnx.defs.SchemaError:  # An operator of onnxruntime's own.
        return False
    return len(versions) > 1
