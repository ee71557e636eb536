"""Graphs inside the nodes of a graph: the branches of If, the bodies of Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

STANDARD_DOMAINS = ("", "ai.onnx")  # of ONNX's own operators


def graphs_inside(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs of a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, each followed by those of the graphs inside it, at every depth."""
    for node in nodes:
        yield node
        yield from nodes_inside(node)


def nodes_inside(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes of the graphs inside a node, at every depth."""
    for graph in graphs_inside(node):
        yield from with_inner(graph.node)


def names_read(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """The tensors that nodes read, themselves or in graphs inside them."""
    for node in with_inner(nodes):
        yield from node.input


def opset_of(model: ModelProto | FunctionProto) -> int:
    """The version of ONNX's own operators; 0 if there is none."""
    return max([opset.version for opset in model.opset_import if opset.domain in STANDARD_DOMAINS], default=0)
