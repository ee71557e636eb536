"""Graphs without branches: of each If, the nodes of one branch stand in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from elman_server.engine.nested_graphs import graphs_inside


def has_branches(graph: GraphProto) -> bool:
    """Whether there is an If that `with_branches` replaces."""
    return any(node.op_type == "If" for node in graph.node)


def with_branches(model: ModelProto, branch: str) -> ModelProto:
    """Replace each If by the nodes of a branch, except in loops.

    Args:
        model: the graph. It is changed, and returned.
        branch: "then_branch" or "else_branch".
    """
    initializers: list[TensorProto] = []
    nodes = list(_straight(model.graph, branch, initializers))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    return model


def _straight(graph: GraphProto, branch: str, initializers: list[TensorProto]) -> Iterator[NodeProto]:
    for node in graph.node:
        if node.op_type != "If":
            copy = NodeProto()
            copy.CopyFrom(node)
            yield copy
            continue
        chosen = GraphProto()
        chosen.CopyFrom(next(attribute.g for attribute in node.attribute if attribute.name == branch))
        # Other graphs may use the same names for other values.
        names = {name: f"{node.output[0]}/{branch}/{name}" for name in _own(chosen) if name}
        for tensor in chosen.initializer:
            tensor.name = names[tensor.name]
            initializers.append(tensor)
        for inner in chosen.node:
            _rename(inner, names)
        yield from _straight(chosen, branch, initializers)
        for output, value in zip(node.output, chosen.output, strict=True):
            yield helper.make_node("Identity", [names.get(value.name, value.name)], [output])


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for graph in graphs_inside(node):
        own = _own(graph)
        around = {name: new for name, new in names.items() if name not in own}
        for inner in graph.node:
            _rename(inner, around)


def _own(graph: GraphProto) -> set[str]:
    """The names that a graph gives to values."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return given | {name for node in graph.node for name in node.output}
