"""Writing ONNX nodes by hand: names that are not taken, and constants that are kept once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# What the server adds to a bundle's graph is named so; no bundle's own tensor may be.
PREFIX = "elman."


class Nodes:
    """Nodes under way to a graph.

    Attributes:
        nodes: in the order in which they are computed.
        constants: the initializers they refer to.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node of one output; its name."""
        name = output or f"{PREFIX}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def split(self, value: str, count: int, *, axis: int) -> list[str]:
        """Append a node that takes a tensor apart into `count` equal ones along an axis; their names."""
        names = [f"{PREFIX}{len(self.nodes)}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node("Split", [value], names, axis=axis, num_outputs=count))
        return names

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """A constant's name; equal ones share it."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"{PREFIX}constant{len(self._known)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]
