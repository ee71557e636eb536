"""Contiguous lanes: a long sequence cut into rows that are read side by side, window after window.

Truncated back-propagation through time needs that a row's next window begins where its last one ended, so that the
state can be carried over (Mikolov et al. 2011; Zaremba et al. 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Inputs and targets, int64 [lanes, window], and whether the state starts anew before them."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    fresh: bool


class Lanes:
    """A sequence as an endless series of windows.

    In every epoch the lanes start somewhere else (the sequence is rotated by a random amount), so that windows are
    not cut at the same places each time.

    Args:
        inputs: int64 [N].
        targets: int64 [N], what is to be predicted at each input.
        lanes: how many rows.
        window: how many steps a window has.
        seed: decides the rotations.
    """

    def __init__(
        self, inputs: NDArray[np.int64], targets: NDArray[np.int64], *, lanes: int, window: int, seed: int
    ) -> None:
        self.lane_length = len(inputs) // lanes
        if self.lane_length < window:
            raise ValueError(
                f"{len(inputs)} steps are too few for {lanes} lanes of at least one window of {window} steps"
            )
        self._inputs = inputs
        self._targets = targets
        self._starts = np.arange(lanes)[:, None] * self.lane_length
        self._steps = np.arange(window)[None, :]
        self._seed = seed
        self.windows_per_epoch = self.lane_length // window

    def window(self, index: int) -> Window:
        """The window number `index` of the endless series: a pure function, so that training can resume anywhere."""
        epoch, within = divmod(index, self.windows_per_epoch)
        rotation = int(np.random.default_rng([self._seed, epoch]).integers(len(self._inputs))) if epoch else 0
        first = rotation + within * self._steps.shape[1]
        positions = (self._starts + self._steps + first) % len(self._inputs)
        return Window(self._inputs[positions], self._targets[positions], fresh=within == 0)
