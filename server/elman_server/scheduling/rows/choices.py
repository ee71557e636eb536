"""What is chosen on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Choices:
    """The tokens that rows have chosen.

    Attributes:
        tokens: int64 [R]; a token without meaning for the rows in `errors` and `exhausted`.
        errors: by row, why none could be chosen.
        complete: the rows whose token is the last one: their grammar allows nothing after it.
        exhausted: the rows whose text matched before: nothing that may follow can be chosen.
    """

    tokens: NDArray[np.int64]
    errors: dict[int, Exception]
    complete: list[int]
    exhausted: list[int]
