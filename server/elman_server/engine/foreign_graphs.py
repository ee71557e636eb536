"""What is looked for in the graphs of bundles that others made, before they are opened.

Weights in files beside a graph belong to the bundle, or nobody would notice if they changed. Outputs that score tokens
or labels are logits: of probabilities, elman would make probabilities once more. A graph has a limited number of nodes,
so that the time in which it is opened is limited, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from elman_bundle import MANIFEST, Bundle, BundleError
from elman_bundle.bundle_folder import resolve_path
from elman_bundle.scores import LOGITS_ARE_SCORED, are_probabilities, find_normalisation
from elman_protos import v1
from elman_server.engine.nested_graphs import graphs_inside, with_inner
from elman_server.errors import ModelLoadError


def check_graphs(bundle: Bundle, node_limit: int) -> None:
    """Refuse a bundle with weights in files that its manifest does not list with their digests, whose scores are
    probabilities, or with too many nodes.

    Args:
        bundle: the bundle.
        node_limit: the largest number of nodes of a graph.

    Raises:
        ModelLoadError: says which file, which output or how many nodes, or that a graph is none.
    """
    listed = {(bundle.path / file.path).resolve() for file in bundle.spec.files}
    for path in filter(None, (bundle.graph_path, bundle.encoder_path)):
        model = read_graph(path, weight_files=False)
        count = _node_count(model, path)
        if count > node_limit:
            raise ModelLoadError(
                f"{path}: the graph has {count} nodes, with those of its functions and of the graphs inside nodes; at "
                f"most {node_limit} are opened. Export the module without unrolling what could be a Loop"
            )
        _check_functions(path, model)
        for location in sorted(_locations(model)):
            if _resolved(path.parent, location) not in listed:
                raise ModelLoadError(
                    f"{path}: has weights in the file {location!r}, which {MANIFEST} does not list; they would not be "
                    "part of the digest of the bundle. Store them in the graph, or list the file when you write the "
                    "manifest"
                )
        if path == bundle.graph_path:
            _check_scores(bundle, model)


def _check_scores(bundle: Bundle, model: onnx.ModelProto) -> None:
    for output in bundle.spec.step.outputs:
        node = find_normalisation(model, output.name) if output.WhichOneof("meaning") else None
        if node is not None:
            raise ModelLoadError(
                f"{bundle.graph_path}: the output {output.name!r} comes from {node.op_type}; {LOGITS_ARE_SCORED}. Name "
                f"the input of that node, {node.input[0]!r}, as the output, or export the module without its last layer"
            )


def check_logits(path: Path, outputs: Iterable[v1.OutputSpec], found: Mapping[str, NDArray[Any]]) -> None:
    """Refuse outputs whose values are probabilities, whichever nodes compute them.

    Args:
        path: the file of the graph.
        outputs: the outputs in the manifest.
        found: their values in several rows, [rows, *shape], by name.

    Raises:
        ModelLoadError: names the output.
    """
    for output in outputs:
        if output.WhichOneof("meaning") and are_probabilities(found[output.name]):
            raise ModelLoadError(
                f"{path}: the output {output.name!r} has probabilities that add up to 1; {LOGITS_ARE_SCORED}. Name "
                "what they are computed of as the output, or export their logarithm"
            )


def read_graph(path: Path, *, weight_files: bool = True) -> onnx.ModelProto:
    """Read a graph.

    Args:
        path: its file.
        weight_files: whether the weights in other files are read, too.

    Raises:
        ModelLoadError: the file is no ONNX graph.
    """
    try:
        return onnx.load(path, load_external_data=weight_files)
    except Exception as error:  # protobuf's exceptions share no base class with onnx's.
        raise ModelLoadError(f"{path}: is no ONNX graph: {error}") from error


def _node_count(model: onnx.ModelProto, path: Path) -> int:
    """The number of nodes of a graph when every call of a function has been replaced by its nodes."""
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    counts: dict[tuple[str, str, str], int | None] = {}  # None: being counted

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(of_node(node) for node in nodes)

    def of_node(node: onnx.NodeProto) -> int:
        key = (node.domain, node.op_type, node.overload)
        if key in functions:
            if key not in counts:
                counts[key] = None
                counts[key] = count(functions[key].node)
            found = counts[key]
            if found is None:
                raise ModelLoadError(f"{path}: the function {node.op_type!r} calls itself, which ONNX does not allow")
            return found
        return 1 + sum(count(graph.node) for graph in graphs_inside(node))

    try:
        return count(model.graph.node)
    except RecursionError as error:
        raise ModelLoadError(f"{path}: functions that call functions are nested too deeply") from error


def _check_functions(path: Path, model: onnx.ModelProto) -> None:
    for function in model.functions:
        for node in with_inner(function.node):
            if any(attribute.HasField("sparse_tensor") for attribute in node.attribute):
                raise ModelLoadError(
                    f"{path}: the function {function.name!r} has a sparse constant, by which onnxruntime may crash. "
                    "Store it as a tensor with its zeros"
                )


def _resolved(folder: Path, location: str) -> Path | None:
    """Where weights are; None if that is no path."""
    try:
        return resolve_path(folder / location)
    except (BundleError, OSError):  # A name that is too long is an OSError.
        return None


def _locations(model: onnx.ModelProto) -> set[str]:
    """The files, relative to that of the graph, in which it has weights."""
    return {
        entry.value
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a graph, those of its functions and of the graphs inside its nodes included."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
        for graph in graphs_inside(node):
            yield from _tensors_of_graph(graph)
