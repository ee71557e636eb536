"""Contiguous lanes: a long sequence cut into rows that are read side by side, window after window.

Truncated back-propagation through time needs that a row's next window begins where its last one ended, so that the
state can be carried over (Mikolov et al. 2011; Zaremba et al. 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100  # A target that counts for nothing; what torch's cross-entropy leaves out.

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Inputs and targets, int64 [lanes, window], and which lanes start anew before them, bool [lanes]."""

    inputs: Ids
    targets: Ids
    fresh: NDArray[np.bool_]


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
        restart: how often a lane starts anew at a window. A text long enough never ends while training, and a network
            that has met its initial state only once does not know what to do with it.
        starts: int64, where documents start, each a multiple of `window`; a lane then starts anew at each of them
            instead of now and then. (And, as always, where an epoch puts it down.)
    """

    def __init__(
        self,
        inputs: Ids,
        targets: Ids,
        *,
        lanes: int,
        window: int,
        seed: int,
        restart: float = 0.0,
        starts: Ids | None = None,
    ) -> None:
        self.windows_per_epoch = len(inputs) // lanes // window
        if not self.windows_per_epoch:
            raise ValueError(
                f"{len(inputs)} steps are too few for {lanes} lanes of at least one window of {window} steps"
            )
        self.inputs = inputs
        self.targets = targets
        self._window = window
        self._seed = seed
        self._restart = restart
        self._starts = starts
        # With documents, a window never spans two.
        lane_length = len(inputs) // lanes if starts is None else self.windows_per_epoch * window
        self._lane_starts = np.arange(lanes) * lane_length

    def window(self, index: int) -> Window:
        """The window number `index` of the endless series: a pure function, so that training can resume anywhere."""
        epoch, within = divmod(index, self.windows_per_epoch)
        firsts = (self._lane_starts + self._rotation(epoch) + within * self._window) % len(self.inputs)
        positions = (firsts[:, None] + np.arange(self._window)) % len(self.inputs)
        if self._starts is not None:
            fresh = np.isin(firsts, self._starts)
        else:
            fresh = np.random.default_rng([self._seed, 1, index]).random(len(firsts)) < self._restart
        return Window(self.inputs[positions], self.targets[positions], fresh | (within == 0))

    def _rotation(self, epoch: int) -> int:
        if epoch == 0:
            return 0
        random = np.random.default_rng([self._seed, 0, epoch])
        unit = 1 if self._starts is None else self._window
        return unit * int(random.integers(len(self.inputs) // unit))


def align_documents(inputs: Ids, targets: Ids, starts: Sequence[int], window: int) -> tuple[Ids, Ids, Ids]:
    """Move documents apart until each starts at a multiple of `window`.

    Args:
        inputs: int64 [N].
        targets: int64 [N].
        starts: where each document starts in them, ascending, the first at 0.
        window: the steps of a window.

    Returns:
        The inputs with zeros between, the targets with IGNORED between, and the new starts.
    """
    ends = [*starts[1:], len(inputs)]
    padded = [-(-(end - start) // window) * window for start, end in zip(starts, ends, strict=True)]
    new_starts = np.cumsum([0, *padded])
    new_inputs = np.zeros(new_starts[-1], dtype=np.int64)
    new_targets = np.full(new_starts[-1], IGNORED, dtype=np.int64)
    for start, end, new in zip(starts, ends, new_starts, strict=False):
        new_inputs[new : new + end - start] = inputs[start:end]
        new_targets[new : new + end - start] = targets[start:end]
    return new_inputs, new_targets, new_starts[:-1]
