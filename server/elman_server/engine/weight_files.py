"""Weights in files beside a graph: they belong to the bundle, or nobody would notice if they changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from elman_bundle import MANIFEST, Bundle
from elman_server.errors import ModelLoadError


def check_weight_files(bundle: Bundle) -> None:
    """Refuse a bundle whose graphs have weights in files that its manifest does not list with their digests.

    Raises:
        ModelLoadError: says which file, or that a graph is none.
    """
    listed = {(bundle.path / file.path).resolve() for file in bundle.spec.files}
    for path in filter(None, (bundle.graph_path, bundle.encoder_path)):
        for location in sorted(_locations(path)):
            if (path.parent / location).resolve() not in listed:
                raise ModelLoadError(
                    f"{path}: has weights in the file {location!r}, which {MANIFEST} does not list; they would not be "
                    "part of the digest of the bundle. Store them in the graph, or list the file when you write the "
                    "manifest"
                )


def _locations(path: Path) -> set[str]:
    """The files, relative to that of the graph, in which it has weights."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base class with onnx's.
        raise ModelLoadError(f"{path}: is no ONNX graph: {error}") from error
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
