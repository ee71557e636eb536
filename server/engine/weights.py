"""A model's weights, kept once for all of its graphs: a session that reads a graph with its weights inside holds three
copies of them, and a model has a graph for each number of steps. What a session packs for its products stays its own.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

_LEAST = 1024  # bytes; below, a constant is no weight, and onnxruntime may compute with it when it opens the graph
_KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)


class Weights:
    """The weights taken out of a graph, which from then on refers to them by name.

    Args:
        model: the graph, which is changed.
        path: its file. onnxruntime wants to know of one, but does not read it again.
    """

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self._folder = path.parent
        self._values: dict[str, onnxruntime.OrtValue] = {}
        for weight in model.graph.initializer:
            if weight.data_type not in _KINDS:
                continue
            value = numpy_helper.to_array(weight)
            if value.nbytes < _LEAST:
                continue
            self._values[weight.name] = onnxruntime.OrtValue.ortvalue_from_numpy(value.copy())
            reference = TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
            reference.data_location = TensorProto.EXTERNAL
            reference.external_data.add(key="location", value=path.name)
            weight.CopyFrom(reference)

    def give_to(self, options: onnxruntime.SessionOptions) -> None:
        """Have a session use them, which must not outlive them."""
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        for name, value in self._values.items():
            options.add_initializer(name, value)
