"""The precision of the products of training, which depends on the processor, too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import nn

from elman_training.config import Precision


def supported_precision(requested: Precision) -> Precision:
    """The requested precision, or float32 if this processor cannot compute all products in it."""
    return requested if requested == "float32" or _computes_bfloat16() else "float32"


def autocast(precision: Precision) -> AbstractContextManager[object]:
    """A context in which networks compute their products in a precision."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


@cache
def _computes_bfloat16() -> bool:
    # Without AVX-512, oneDNN has no LSTM in bfloat16, and torch reports that only by failing.
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(8, 8, batch_first=True)(torch.zeros(1, 1, 8))
    except RuntimeError:
        return False
    return True
