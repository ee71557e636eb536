"""What the products of training are computed in, which is up to the processor too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import nn

from elman_training.config import Precision


def precision_here(wanted: Precision) -> Precision:
    """The wanted one, or float32 where this processor cannot compute all products in the wanted one."""
    return wanted if wanted == "float32" or _computes_bfloat16() else "float32"


def products_in(precision: Precision) -> AbstractContextManager[object]:
    """Within it, a network computes its products so."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


@cache
def _computes_bfloat16() -> bool:
    """Whether torch runs an LSTM in bfloat16 here: without AVX-512 oneDNN has none, and torch tells only by failing."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(8, 8, batch_first=True)(torch.zeros(1, 1, 8))
    except RuntimeError:
        return False
    return True
