"""Rewriting a step graph so that products with constant matrices are computed in 8-bit integers.

    MatMul or Gemm with a constant weight   ->   QuantizeLinear, then com.microsoft.MatMulIntegerToFloat

A weight has one scale for each output channel, and an activation one scale for each tensor, which is fixed at export by
how large the tensor can become. A scale taken over the batch, as by DynamicQuantizeLinear, is never used: the result of
a row would depend on the other rows.

Activations are unsigned around 128 and weights signed, the only combination for which onnxruntime has fast products on
x86 (signed activations were 20 to 100 times slower). Processors with AVX2 or AVX-512 but without VNNI compute it with
VPMADDUBSW, which adds the products of rows 2k and 2k + 1 of the weight in 16 bits with saturation. Weights are scaled
so that no sum saturates: a bundle's products are the same integers on every processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxscript import optimizer

from elman_export.export_error import ExportError

_LARGEST = 127  # the largest integer of activations and weights; symmetric, so -128 is not used
_ZERO_POINT = 128
# The largest sum of weights in rows 2k and 2k + 1. 128 * 255 is below 2**15, and rounding may add half a unit.
_LARGEST_PAIR = 127.5
_SMALLEST_WEIGHT = 1024  # elements; smaller products do not dominate the time of a step
_DOMAIN = "com.microsoft"

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a constant matrix.

    Attributes:
        node: the MatMul or Gemm.
        weight_name: the name of the quantized weight; products with the same matrix share it.
        weight: [K, N], with Gemm's transposition and alpha applied.
        bias: a constant that is added, [N], with Gemm's beta applied; None if there is none.
        added: the name of a tensor that is added and is not a constant vector; None if there is none.
    """

    node: onnx.NodeProto
    weight_name: str
    weight: Array
    bias: Array | None = None
    added: str | None = None

    @property
    def input(self) -> str:
        """The name of the activation."""
        return str(self.node.input[0])


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Find the products that can be computed in integers.

    Raises:
        ExportError: there are none. The message says why.
    """
    constants = {weight.name: weight for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if _multiplies_by_constant(node, constants)]
    candidates = [node for node in nodes if constants[node.input[1]].data_type == onnx.TensorProto.FLOAT]
    found = [product for node in candidates if (product := _read_product(node, constants)) is not None]
    large = [product for product in found if product.weight.size >= _SMALLEST_WEIGHT]
    if large:
        return large
    if found:
        largest = max(product.weight.size for product in found)
        why = f"its largest weight has {largest} numbers, and below {_SMALLEST_WEIGHT} int8 saves no time"
    elif nodes and not candidates:
        names = {onnx.TensorProto.DataType.Name(constants[node.input[1]].data_type).lower() for node in nodes}
        why = f"its weights are {', '.join(sorted(names))}, and only float32 can become int8"
    else:
        why = (
            "it has no product (MatMul or Gemm; in torch nn.Linear or @) by a constant matrix; "
            "convolutions, whole recurrent operators and einsum stay in floating point"
        )
    raise ExportError(f"the step has nothing to quantize: {why}")


def quantize(model: onnx.ModelProto, products: Iterable[Product], bounds: Mapping[str, float]) -> onnx.ModelProto:
    """Compute products in integers; the inputs and outputs of the step stay the same.

    Args:
        model: a step graph.
        products: the products to replace.
        bounds: the largest magnitude of every such product's input; larger values are clipped.

    Returns:
        A new graph.
    """
    by_output = {product.node.output[0]: product for product in products}
    rewriter = _Rewriter(model.graph, bounds)
    for node in model.graph.node:
        if node.output[0] in by_output:
            rewriter.replace(by_output[node.output[0]])
        else:
            rewriter.nodes.append(node)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(rewriter.nodes)
    made.graph.initializer.extend(rewriter.constants.values())
    if all(opset.domain != _DOMAIN for opset in made.opset_import):
        made.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    optimizer.remove_unused_nodes(made)  # Also removes the float weights.
    return made


class _Rewriter:
    """Collects the nodes of the new graph and its additional constants."""

    def __init__(self, graph: onnx.GraphProto, bounds: Mapping[str, float]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._bounds = bounds
        self._taken = {value.name for value in graph.input} | {weight.name for weight in graph.initializer}
        self._taken |= self._producers.keys()
        self._quantized: dict[tuple[str, float], str] = {}

    def replace(self, product: Product) -> None:
        """Add the nodes that compute a product in integers."""
        scale = self._bounds[product.input] / _LARGEST
        weight, weight_scales = quantize_weight(product.weight)
        inputs = [
            self._quantize(product.input, scale),
            self._constant(product.weight_name, weight),
            self._scale(scale),
            self._constant(f"{product.weight_name}.scales", weight_scales),
            self._zero_point(),
        ]
        output = product.node.output[0]
        if product.bias is not None:
            inputs += ["", self._constant(f"{output}.bias", product.bias)]  # Symmetric weights need no zero point.
        multiplied = output if product.added is None else self._free(f"{output}.product")
        self.nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [multiplied], domain=_DOMAIN))
        if product.added is not None:
            self.nodes.append(helper.make_node("Add", [multiplied, product.added], [output]))

    def _quantize(self, name: str, scale: float) -> str:
        """The name of a tensor's quantized form. Each tensor is quantized once."""
        if (name, scale) in self._quantized:
            return self._quantized[name, scale]
        made = self._free(f"{name}.uint8.{len(self._quantized)}")
        self._quantized[name, scale] = made
        producer = self._producers.get(name)
        if producer is not None and producer.op_type == "Concat":
            # Quantizing the parts before they are joined copies a quarter of the bytes, and a state that two layers or
            # two steps of an unrolled graph read is quantized once for both.
            joined = onnx.NodeProto()
            joined.CopyFrom(producer)
            joined.name = f"{producer.name}.uint8"
            joined.input[:] = [self._quantize(part, scale) for part in producer.input]
            joined.output[:] = [made]
            self.nodes.append(joined)
        else:
            self.nodes.append(
                helper.make_node("QuantizeLinear", [name, self._scale(scale), self._zero_point()], [made])
            )
        return made

    def _scale(self, scale: float) -> str:
        return self._constant(f"activation.scale.{np.float32(scale)!s}", np.float32(scale))

    def _zero_point(self) -> str:
        return self._constant("activation.zero_point", np.uint8(_ZERO_POINT))

    def _free(self, name: str) -> str:
        """A name like this one that no tensor of the graph has."""
        while name in self._taken:
            name += "_"
        return name

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        name = self._free(name)
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def quantize_weight(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """Quantize a weight [K, N].

    Returns:
        The integers, [K, N], and their scales, [N]: weight = integers * scales up to rounding. The magnitude of an
        integer is at most 127, and that of a sum of rows 2k and 2k + 1 in a column at most 128.
    """
    pairs = np.abs(weight[0 : len(weight) - 1 : 2] + weight[1::2])
    scales = np.abs(weight).max(axis=0) / _LARGEST
    scales = np.maximum(scales, pairs.max(axis=0, initial=0.0) / _LARGEST_PAIR)
    scales[scales == 0] = 1.0
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def _multiplies_by_constant(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = constants.get(node.input[1])
    return weight is not None and len(weight.dims) == 2 and node.input[0] not in constants


def _read_product(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Product | None:
    weight, name = numpy_helper.to_array(constants[node.input[1]]), f"{node.input[1]}.int8"
    if node.op_type == "MatMul":
        return Product(node, name, weight)
    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if options.get("transA"):
        return None  # Axis 0 of its input is not the row.
    if options.get("transB"):
        weight, name = weight.T, f"{name}.transposed"
    if (alpha := np.float32(options.get("alpha", 1.0))) != 1:
        weight, name = alpha * weight, f"{name}.times.{alpha!s}"
    if len(node.input) < 3 or not node.input[2]:
        return Product(node, name, weight)
    beta, added = np.float32(options.get("beta", 1.0)), node.input[2]
    bias = numpy_helper.to_array(constants[added]) if added in constants else None
    if bias is not None and bias.size in (1, weight.shape[1]) and bias.shape[:-1] in ((), (1,)):
        return Product(node, name, weight, bias=beta * np.broadcast_to(bias.ravel(), weight.shape[1]))
    return Product(node, name, weight, added=added) if beta == 1 else None
