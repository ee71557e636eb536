"""Inputs of models in requests: text, token ids, numbers."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from elman_protos import v1
from elman_protos.element_types import BY_NAME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = Sequence[float] | Sequence[Sequence[float]] | NDArray[np.number[Any]]

Input = str | Sequence[int]


def set_input(
    message: v1.GenerateRequest
    | v1.ChooseRequest
    | v1.ClassifyRequest
    | v1.Piece
    | v1.CreateSessionRequest
    | v1.AnalysisInput
    | v1.Source
    | v1.Choice,
    given: Input,
) -> None:
    """Write an input into a message: a str as text, anything else as token ids."""
    if isinstance(given, str):
        message.text = given
    else:
        message.tokens.ids.extend(given)


def set_source(request: v1.GenerateRequest | v1.ChooseRequest | v1.ScoreRequest, given: Input | Numbers | None) -> None:
    """Write the source of an encoder into a request; None for no source."""
    if given is not None:
        request.source.SetInParent()
        set_steps(request.source, given)


def set_steps(message: v1.ClassifyRequest | v1.Piece | v1.Source, given: Input | Numbers) -> None:
    """Write text, token ids or numbers into a message.

    Args:
        message: the message.
        given: text, token ids, a numpy array [steps, *shape], whose double precision becomes single, or a list of
            floats or of rows of floats.

    Raises:
        ValueError, TypeError: the input has another type, or rows of different lengths.
    """
    values: Any = given
    if not hasattr(values, "__len__"):
        raise TypeError(f"got a {type(values).__name__}; an input is text, token ids, an array or a list of numbers")
    if hasattr(values, "dtype") and not hasattr(values.dtype, "kind"):
        raise TypeError(f"got a {type(values).__name__} of {values.dtype}; convert it to a numpy array")
    if hasattr(values, "dtype") and (values.dtype.kind == "f" or values.ndim != 1):
        _set_array(message.tensor, values)
    elif not isinstance(values, str) and len(values) and isinstance(values[0], float | Sequence):
        _set_rows(message.tensor, values)
    else:
        set_input(message, values)


def _set_array(tensor: v1.Tensor, values: NDArray[Any]) -> None:
    if values.dtype.name == "float64":
        values = values.astype("float32")
    if values.dtype.name not in BY_NAME:
        raise ValueError(f"got an array of {values.dtype.name}; it must be one of {', '.join(BY_NAME)}")
    tensor.data_type = BY_NAME[values.dtype.name].data_type
    tensor.shape.extend(values.shape)
    tensor.content = values.astype(values.dtype.newbyteorder("<")).tobytes()


def _set_rows(tensor: v1.Tensor, rows: Sequence[Any]) -> None:
    shape = [len(rows)]
    numbers: list[float] = list(rows)
    if isinstance(rows[0], Sequence):
        shape.append(len(rows[0]))
        wrong = next((step for step, row in enumerate(rows) if len(row) != shape[1]), None)
        if wrong is not None:
            raise ValueError(f"step {wrong} has {len(rows[wrong])} numbers, but the first has {shape[1]}")
        numbers = [number for row in rows for number in row]
    tensor.data_type = v1.DATA_TYPE_FLOAT32
    tensor.shape.extend(shape)
    try:
        tensor.content = struct.pack(f"<{math.prod(shape)}f", *numbers)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"numbers are needed, in single precision: {error}") from error
