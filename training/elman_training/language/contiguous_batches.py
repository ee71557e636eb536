"""One long sequence cut into rows that are read side by side, window after window.

Truncated back-propagation through time requires that a row's next window begins where its last one ended, so that the
state can be carried over (Mikolov et al. 2011; Zaremba et al. 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_training.task import IGNORED, Ids


@dataclass(frozen=True)
class Window:
    """A batch: some steps of every row.

    Attributes:
        inputs: int64 [rows, window].
        targets: int64 [rows, window].
        fresh: whether each row starts from the initial state, bool [rows].
    """

    inputs: Ids
    targets: Ids
    fresh: NDArray[np.bool_]


class ContiguousBatches:
    """A sequence as an endless series of windows.

    Every epoch rotates the sequence by a random amount, so that windows are not cut at the same places each time.

    Args:
        inputs: int64 [N].
        targets: the value to predict at each input, int64 [N].
        rows: the number of rows.
        window: the number of steps of a window.
        seed: determines the rotations.
        restart: the probability that a row starts from the initial state at a window. A long text never ends while
            training, and a network that has seen its initial state only once does not learn to start from it.
        starts: where documents start, int64, each a multiple of `window`. A row then starts from the initial state at
            each of them, and `restart` has no effect. Every row also does at the beginning of an epoch.

    Raises:
        ValueError: the sequence is shorter than one window of every row.
    """

    def __init__(
        self,
        inputs: Ids,
        targets: Ids,
        *,
        rows: int,
        window: int,
        seed: int,
        restart: float = 0.0,
        starts: Ids | None = None,
    ) -> None:
        self.windows_per_epoch = len(inputs) // rows // window
        if not self.windows_per_epoch:
            raise ValueError(
                f"got {len(inputs)} steps; {rows} rows (--lanes) of one window of {window} steps need at least "
                f"{rows * window}"
            )
        self.inputs = inputs
        self.targets = targets
        self._window = window
        self._seed = seed
        self._restart = restart
        self._starts = starts
        # With documents, a window never spans two.
        row_length = len(inputs) // rows if starts is None else self.windows_per_epoch * window
        self._row_starts = np.arange(rows) * row_length

    def window(self, index: int) -> Window:
        """The window at a position of the endless series: a pure function, so that training can resume anywhere."""
        epoch, within = divmod(index, self.windows_per_epoch)
        firsts = (self._row_starts + self._rotation(epoch) + within * self._window) % len(self.inputs)
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
        window: the number of steps of a window.

    Returns:
        The inputs with zeros between documents, the targets with IGNORED between them, and the new starts.
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
