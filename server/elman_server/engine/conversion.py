"""Graphs of older opsets, and with functions, in the form in which steps are unrolled.

Converters overlook what has changed between two versions of an operator, so the result is compared with the original on
random inputs.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from elman_bundle import Bundle
from elman_server.engine.branches import has_branches, with_branches
from elman_server.engine.comparison import Comparison, name_of_operator, with_all_values
from elman_server.engine.foreign_graphs import tensors_of
from elman_server.engine.nested_graphs import opset_of
from elman_server.engine.providers import Opener
from elman_server.errors import EngineError, ModelLoadError

_OLDEST_OPSET = 18  # the first in which the nodes that unrolling adds have their present form
_OPSET = 20
_LEAST = 1024  # bytes; converters read smaller constants, such as axes


def needs_conversion(model: ModelProto) -> bool:
    """Whether a graph has functions, or an opset in which steps cannot be unrolled."""
    return bool(model.functions) or opset_of(model) < _OLDEST_OPSET


class Conversion:
    """A graph without functions, in an opset in which steps can be unrolled.

    Args:
        model: the graph. It is changed.
        path: its file, for errors.

    Raises:
        ModelLoadError: it cannot be converted.

    Attributes:
        result: the converted graph, with references in the place of large tensors.
        tensors: by location, what these stand for.
    """

    def __init__(self, model: ModelProto, path: Path) -> None:
        self._path = path
        if not opset_of(model):  # The graph consists of functions, which have opsets of their own.
            model.opset_import.add(domain="", version=max([*map(opset_of, model.functions), 0]) or _OPSET)
        self._opset = opset_of(model)
        # Converters copy tensors several times, and inlining copies those of a function to every call of it.
        self.tensors = _set_aside(model)
        try:
            self._inlined = onnx.inliner.inline_local_functions(model, convert_version=True)
            self.result = self._inlined
            if self._opset < _OLDEST_OPSET:
                self.result = onnx.version_converter.convert_version(self._inlined, _OPSET)
        except Exception as error:  # The packages raise no narrower kind.
            raise self._error(f"cannot be converted: {error}") from error

    def copy(self) -> ModelProto:
        """A copy of the result that may be changed."""
        copy = ModelProto()
        copy.CopyFrom(self.result)
        return copy

    def check(
        self,
        bundle: Bundle,
        step: ModelProto,
        opener: Opener,
        seconds: float,
    ) -> None:
        """Compare the step with the original on random inputs, and both branches of every If.

        Args:
            bundle: the model.
            step: the step that was made of the result.
            opener: opens sessions where the model runs.
            seconds: how long a run may take.

        Raises:
            ModelLoadError: they differ; it names the operator.
            EngineError: the original does not run.
        """
        comparison = Comparison(bundle, seconds)
        try:
            pair = [opener.open(graph, self._path).session for graph in (self._path, step.SerializeToString())]
        except ModelLoadError as error:
            raise self._error(f"cannot be converted: {error.__cause__}") from error
        found = comparison.difference(*pair)
        if found is not None:
            raise self._difference_error(comparison, opener, None, found.size)
        for branch in ("then_branch", "else_branch") if has_branches(self._inlined.graph) else ():
            try:
                pair = [self._open(model, branch, opener) for model in (self._inlined, self.result)]
                found = comparison.difference(*pair)
            except (EngineError, ModelLoadError):  # Not every branch can be computed for all inputs.
                continue
            if found is not None:
                raise self._difference_error(comparison, opener, branch, found.size)

    def _difference_error(
        self, comparison: Comparison, opener: Opener, branch: str | None, size: float
    ) -> ModelLoadError:
        """The error that names the first operator with another result."""
        operator = "an operator"
        originals = with_all_values(self._with_branches(self._inlined, branch))
        results = with_all_values(self._with_branches(self.result, branch))
        try:
            pair = [opener.open(model.SerializeToString(), self._path).session for model in (originals, results)]
            found = comparison.difference(*pair)
        except (EngineError, ModelLoadError):
            found = None
        if found is not None:
            known = {output.name for output in results.graph.output}
            compared = [output.name for output in originals.graph.output if output.name in known]
            operator, size = name_of_operator(originals, found.name, compared, _OPSET), found.size
        return self._error(f"computes something else when it is converted: {operator} differs by {size:.3g}")

    def _open(self, model: ModelProto, branch: str, opener: Opener) -> onnxruntime.InferenceSession:
        return opener.open(self._with_branches(model, branch).SerializeToString(), self._path).session

    def _with_branches(self, model: ModelProto, branch: str | None) -> ModelProto:
        """A copy with its tensors, and with one of the branches of each If in its place."""
        copy = ModelProto()
        copy.CopyFrom(model)
        for tensor in tensors_of(copy):
            if tensor.data_location == TensorProto.EXTERNAL:
                name = tensor.name
                tensor.CopyFrom(self.tensors[tensor.external_data[0].value])
                tensor.name = name
        return copy if branch is None else with_branches(copy, branch)

    def _error(self, problem: str) -> ModelLoadError:
        is_old = self._opset < _OLDEST_OPSET
        remedy = f"Export it with opset {_OLDEST_OPSET} or later" if is_old else "Export it without functions"
        return ModelLoadError(f"{self._path}: the graph of opset {self._opset} {problem}. {remedy}")


def _set_aside(model: ModelProto) -> dict[str, TensorProto]:
    """Put references in the place of large tensors; returns these by the locations in the references."""
    aside: dict[str, TensorProto] = {}
    for tensor in tensors_of(model):
        if _byte_count(tensor) < _LEAST:
            continue
        location = f"elman.{len(aside)}"
        aside[location] = whole = TensorProto()
        whole.CopyFrom(tensor)
        reference = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        reference.data_location = TensorProto.EXTERNAL
        reference.external_data.add(key="location", value=location)
        tensor.CopyFrom(reference)
    return aside


def _byte_count(tensor: TensorProto) -> int:
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
