"""ONNX nodes under construction: unique names, and constants that are stored once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

PREFIX = "elman."  # of all names that the server adds to a graph; the tensors of a bundle get others


class Nodes:
    """Nodes that are to be added to a graph.

    Attributes:
        nodes: the nodes, in execution order.
        constants: the initializers that they refer to.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}  # of the constants

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node with one output.

        Args:
            operator: ONNX operator.
            inputs: names of the inputs.
            output: name of the output; None for a new one.
            attributes: attributes of the node.

        Returns:
            The name of the output.
        """
        name = output or f"{PREFIX}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def split(self, value: str, count: int, *, axis: int) -> list[str]:
        """Append a node that splits a tensor into `count` equal parts along an axis; return their names."""
        names = [f"{PREFIX}{len(self.nodes)}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node("Split", [value], names, axis=axis, num_outputs=count))
        return names

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Return the name of a constant; equal constants share one."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = f"{PREFIX}constant{len(self._names)}"
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]
