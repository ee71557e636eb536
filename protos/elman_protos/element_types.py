"""The element types of tensors: one row for each type that a model's inputs, states and outputs may have.

Every other table of types derives from this one. To add a type, add a value to the enum `DataType` in
`protos/elman/v1/model.proto` and a row to `ELEMENT_TYPES`. This module imports neither numpy nor a runtime, because the
client works without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from elman_protos import v1

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ElementType:
    """One element type under each of the names that it has in the formats and libraries elman uses.

    Attributes:
        name: the name in numpy, in torch and in messages to people.
        data_type: the value in manifests and requests.
        onnx_type: the value of `onnx.TensorProto.DataType`.
        onnxruntime_type: the value of `onnxruntime.NodeArg.type`.
        struct_code: the format character of the module `struct`.
    """

    name: str
    data_type: v1.DataType.ValueType
    onnx_type: int
    onnxruntime_type: str
    struct_code: str

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype, in native byte order."""
        import numpy as np

        return np.dtype(self.name)

    @property
    def is_integer(self) -> bool:
        return self.name.startswith("int")


ELEMENT_TYPES = (
    ElementType("float32", v1.DATA_TYPE_FLOAT32, 1, "tensor(float)", "f"),
    ElementType("float16", v1.DATA_TYPE_FLOAT16, 10, "tensor(float16)", "e"),
    ElementType("int64", v1.DATA_TYPE_INT64, 7, "tensor(int64)", "q"),
    ElementType("int32", v1.DATA_TYPE_INT32, 6, "tensor(int32)", "i"),
)

BY_DATA_TYPE = {row.data_type: row for row in ELEMENT_TYPES}
BY_NAME = {row.name: row for row in ELEMENT_TYPES}


def element_type(data_type: v1.DataType.ValueType) -> ElementType:
    """Return the row of a type that a valid manifest names.

    Raises:
        KeyError: the value is not in the table. `elman_bundle.load_bundle` refuses such manifests.
    """
    return BY_DATA_TYPE[data_type]
