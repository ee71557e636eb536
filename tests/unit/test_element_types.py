"""The table of element types agrees with the libraries whose names it uses."""

from __future__ import annotations

import struct

import numpy as np
import onnx
import pytest
import torch

from elman_protos import v1
from elman_protos.element_types import BY_DATA_TYPE, BY_NAME, ELEMENT_TYPES, ElementType, element_type

EVERY_TYPE = pytest.mark.parametrize("row", ELEMENT_TYPES, ids=lambda row: row.name)


def test_every_enum_value_has_one_row() -> None:
    assert sorted(BY_DATA_TYPE) == sorted(v1.DataType.values())[1:]
    assert len(BY_NAME) == len(ELEMENT_TYPES) == len(BY_DATA_TYPE)
    assert v1.DATA_TYPE_UNSPECIFIED not in BY_DATA_TYPE


@EVERY_TYPE
def test_names_match_those_of_the_libraries(row: ElementType) -> None:
    assert element_type(row.data_type) is row
    assert v1.DataType.Name(row.data_type) == f"DATA_TYPE_{row.name.upper()}"
    assert row.dtype == np.dtype(getattr(np, row.name))
    assert row.is_integer == (row.dtype.kind == "i")
    assert onnx.helper.tensor_dtype_to_np_dtype(row.onnx_type) == row.dtype
    assert row.onnxruntime_type == f"tensor({onnx.TensorProto.DataType.Name(row.onnx_type).lower()})"
    assert torch.from_numpy(np.zeros(1, row.dtype)).dtype is getattr(torch, row.name)
    assert np.frombuffer(struct.pack(f"<{row.struct_code}", 2), row.dtype.newbyteorder("<")) == 2
    assert struct.calcsize(f"<{row.struct_code}") == row.dtype.itemsize
