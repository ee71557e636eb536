"""What a graph computes from constants alone is computed once, and its results become initializers.

A model has a graph for each number of steps, and a graph has a copy of the step for each of them. All of these share
their initializers. Each would have its own copy of what a Constant node holds, of the initializers of a graph inside a
node, and of what onnxruntime computes from constants when it opens a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import structlog
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from elman_server.engine.nested_graphs import STANDARD_DOMAINS, graphs_inside, names_read
from elman_server.engine.providers import open_plain
from elman_server.engine.trials.limits import run_limited
from elman_server.errors import EngineError, ModelLoadError

_SEEING_OUTSIDE = ("If", "Loop", "Scan")  # The graphs inside them read the tensors around them.
# Not deterministic; or better left to onnxruntime, which joins them with the nodes after them; or no tensors.
_NOT_FOLDED = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    *("Optional", "OptionalGetElement", "OptionalHasElement", "SplitToSequence", "ConcatFromSequence", "SequenceAt"),
    *("SequenceConstruct", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"),
}
# What may be computed although a branch or a loop might not do it: it always succeeds.
_FOLDED_INSIDE = {"Cast", "Identity", "Transpose"}

_log = structlog.get_logger(__name__)


def hoist_constants(model: ModelProto, path: Path, seconds: float, tensors: Mapping[str, TensorProto]) -> ModelProto:
    """Make initializers of all constants of a graph, also of those in branches and loops.

    Args:
        model: the graph without functions. It is changed, and of no use afterwards.
        path: its file, for the log.
        seconds: how long the constants may be computed; where that does not succeed, the nodes stay.
        tensors: by location, what references to other files stand for.

    Returns:
        The graph, whose nodes depend on its inputs.
    """
    hoisting = _Hoisting(model.graph, tensors)
    nodes = hoisting.nodes(model.graph, {})
    try:
        hoisting.compute(model, path, seconds)
    except (EngineError, ModelLoadError) as error:
        _log.warning("constants not folded: every graph folds its own", graph=str(path), reason=str(error))
        nodes = [*hoisting.computed, *nodes]
    # A new message: what is deleted from one stays in memory with it.
    hoisted = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    hoisted.graph.name = model.graph.name
    given = {tensor.name for tensor in model.graph.initializer}  # Old graphs list them as inputs, too.
    hoisted.graph.input.extend(value for value in model.graph.input if value.name not in given)
    hoisted.graph.output.extend(model.graph.output)
    hoisted.graph.node.extend(nodes)
    used = set(names_read(nodes))
    for name, tensor in hoisting.initializers.items():
        if name in used:
            initializer = hoisted.graph.initializer.add()
            initializer.CopyFrom(tensor)
            initializer.name = name
    return hoisted


class _Hoisting:
    """Takes the constants out of a graph.

    Args:
        graph: the graph.
        tensors: by location, what references to other files stand for.

    Attributes:
        initializers: the constants, by their names in the resulting graph.
        computed: the nodes that depend on them alone.
    """

    def __init__(self, graph: GraphProto, tensors: Mapping[str, TensorProto]) -> None:
        self.initializers: dict[str, TensorProto] = {}
        self.computed: list[NodeProto] = []
        self._tensors = tensors
        self._of_locations: dict[str, str] = {}
        self._taken = set(_names(graph))
        self._wanted: set[str] = set()  # what the other nodes read

    def nodes(self, graph: GraphProto, outside: Mapping[str, str], *, inside: bool = False) -> list[NodeProto]:
        """The nodes of a graph that depend on its inputs. They read constants by their new names.

        Args:
            graph: the graph. The graphs inside its nodes are changed.
            outside: the new names of the constants around it, by their names there.
            inside: whether it is inside a node.
        """
        inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
        own = inputs | {name for node in graph.node for name in node.output}
        constants = {name: new for name, new in outside.items() if name not in own}

        def new_name(name: str) -> str:
            return self._new_name(name) if inside or name in outputs else name

        def add(name: str, tensor: TensorProto) -> None:
            constants[name] = self._add(new_name(name), tensor)

        for tensor in graph.initializer:
            if not inside or tensor.name not in inputs:  # A graph inside a node is given its inputs.
                add(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            add(sparse.values.name, _dense(sparse))
        kept: list[NodeProto] = []
        for node in graph.node:
            value = _constant_value(node)
            if value is not None:
                add(node.output[0], value)
            elif _is_foldable(node, inside) and all(name in constants for name in node.input if name):
                node.input[:] = [constants.get(name, name) for name in node.input]
                constants |= {name: new_name(name) for name in node.output if name}
                node.output[:] = [constants.get(name, name) for name in node.output]
                self.computed.append(node)
            else:
                self._keep(node, constants)
                kept.append(node)
        for name in outputs & constants.keys():
            kept.append(helper.make_node("Identity", [constants[name]], [name]))
            self._wanted.add(constants[name])
        return kept

    def _keep(self, node: NodeProto, constants: Mapping[str, str]) -> None:
        node.input[:] = [constants.get(name, name) for name in node.input]
        self._wanted.update(node.input)
        if node.domain in STANDARD_DOMAINS and node.op_type in _SEEING_OUTSIDE:
            for graph in graphs_inside(node):
                kept = list(map(_copy, self.nodes(graph, constants, inside=True)))
                inputs = {value.name for value in graph.input}
                initializers = [tensor for tensor in graph.initializer if tensor.name in inputs]
                for field in ("node", "initializer", "sparse_initializer"):
                    graph.ClearField(field)
                graph.node.extend(kept)
                graph.initializer.extend(initializers)

    def _new_name(self, name: str) -> str:
        number = 0
        while f"{name}/{number}" in self._taken:
            number += 1
        self._taken.add(f"{name}/{number}")
        return f"{name}/{number}"

    def _add(self, name: str, tensor: TensorProto) -> str:
        if tensor.data_location == TensorProto.EXTERNAL:
            location = tensor.external_data[0].value
            name = self._of_locations.setdefault(location, name)
            tensor = self._tensors[location]
        self.initializers[name] = tensor
        return name

    def compute(self, model: ModelProto, path: Path, seconds: float) -> None:
        """Make initializers of what the nodes that are kept read of the computed ones.

        Raises:
            EngineError: onnxruntime rejects or fails to compute it.
            ModelLoadError: it takes too long.
        """
        names = [name for node in self.computed for name in node.output if name in self._wanted]
        if not names:
            return
        nodes, needed = list[NodeProto](), set(names)
        for node in reversed(self.computed):
            if not needed.isdisjoint(node.output):
                nodes.append(node)
                needed.update(node.input)
        model = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        model.graph.name = "constants"
        model.graph.node.extend(reversed(nodes))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        for name in needed & self.initializers.keys():
            initializer = model.graph.initializer.add()
            initializer.CopyFrom(self.initializers[name])
            initializer.name = name
        try:
            session = open_plain(model)  # Everything in it is constant: an optimised one would compute it at once.
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(str(error)) from error
        values = run_limited(session, names, {}, path=path, seconds=seconds)
        del model
        for name in names:
            value = values.pop(0)
            if not isinstance(value, np.ndarray | np.generic):
                raise EngineError(f"{name} is no tensor")
            self.initializers[name] = numpy_helper.from_array(np.asarray(value))


def _is_foldable(node: NodeProto, inside: bool) -> bool:
    folded = node.op_type in _FOLDED_INSIDE if inside else node.op_type not in _NOT_FOLDED
    computes = node.domain in STANDARD_DOMAINS and folded
    return computes and any(node.input) and next(graphs_inside(node), None) is None


def _constant_value(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds; None for other nodes."""
    if node.op_type != "Constant" or node.domain not in STANDARD_DOMAINS or not node.attribute:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        return attribute.t
    if attribute.name == "sparse_value":
        return _dense(attribute.sparse_tensor)
    value = helper.get_attribute_value(attribute)
    if attribute.name in ("value_string", "value_strings"):
        return numpy_helper.from_array(np.array(value, object))
    return numpy_helper.from_array(np.array(value, np.float32 if "float" in attribute.name else np.int64))


def _dense(sparse: SparseTensorProto) -> TensorProto:
    """A sparse tensor with its zeros, as onnxruntime keeps it, too."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    dense[tuple(indices.T) if indices.ndim > 1 else np.unravel_index(indices, dense.shape)] = values
    return numpy_helper.from_array(dense)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _names(graph: GraphProto) -> Iterator[str]:
    """Every name in a graph, and in the graphs inside its nodes."""
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in graphs_inside(node):
            yield from _names(inner)
