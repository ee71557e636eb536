"""Batches of pairs of a source and a target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from elman_training.task import IGNORED


@dataclass(frozen=True)
class PairBatch:
    """Pairs, padded with zeros after the end of the shorter ones.

    Attributes:
        source: token ids [B, S].
        lengths: of the sources, int64 [B].
        inputs: the targets after the token that starts them, int64 [B, T].
        targets: the targets with the token that ends them, int64 [B, T]; IGNORED after it.
    """

    source: Tensor
    lengths: Tensor
    inputs: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """The number of tokens of sources and targets, without padding."""
        return int(self.lengths.sum()) + int((self.targets != IGNORED).sum())
