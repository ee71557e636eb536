"""What is looked for in the graphs of bundles that others made, before they are opened.

Weights in files beside a graph belong to the bundle, or nobody would notice if they changed. Outputs that score tokens
or labels are logits: of probabilities, elman would make probabilities once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from elman_bundle import MANIFEST, Bundle
from elman_bundle.scores import LOGITS_ARE_SCORED, are_probabilities, find_normalisation
from elman_protos import v1
from elman_server.errors import ModelLoadError


def check_graphs(bundle: Bundle) -> None:
    """Refuse a bundle with weights in files that its manifest does not list with their digests, or whose scores are
    probabilities.

    Raises:
        ModelLoadError: says which file or which output, or that a graph is none.
    """
    listed = {(bundle.path / file.path).resolve() for file in bundle.spec.files}
    for path in filter(None, (bundle.graph_path, bundle.encoder_path)):
        model = read_graph(path, weight_files=False)
        for location in sorted(_locations(model)):
            if (path.parent / location).resolve() not in listed:
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


def _locations(model: onnx.ModelProto) -> set[str]:
    """The files, relative to that of the graph, in which it has weights."""
    nodes = [node for function in model.functions for node in function.node]
    return {
        entry.value
        for tensor in (*_tensors(model.graph), *_tensors_of(nodes))
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of(list(graph.node))


def _tensors_of(nodes: list[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)
