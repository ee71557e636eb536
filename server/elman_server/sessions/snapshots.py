"""Snapshots of a session's state, and which of them are kept.

The number of snapshots per session is bounded. They are dense near the end of the session, where it continues, and
sparse far back, where only a rewind or a fork starts from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MAX_SNAPSHOTS = 16


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A packed state.

    Attributes:
        position: number of steps that led to the state.
        state: the state, packed by the `StateLayout` of the model.
    """

    position: int
    state: bytes


def superseded_positions(snapshots: Sequence[Snapshot], new: Snapshot) -> list[int]:
    """Return the positions of the snapshots to drop when a new one is added.

    While there are too many, the one is dropped whose absence lengthens the way from the previous snapshot least,
    relative to its distance from the end.

    Args:
        snapshots: the snapshots of the session.
        new: the new one.
    """
    kept = sorted({*(snapshot.position for snapshot in snapshots), new.position})
    dropped = []
    while len(kept) > _MAX_SNAPSHOTS:
        gaps = [
            (after - before) / (kept[-1] - position)
            for before, position, after in zip([0, *kept], kept[:-1], kept[1:], strict=False)
        ]
        dropped.append(kept.pop(gaps.index(min(gaps))))
    return dropped


def thin(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Return the last of the snapshots of one reading and evenly spaced others, at most as many as a session keeps."""
    stride = -(-len(snapshots) // _MAX_SNAPSHOTS)
    return snapshots[::-1][::stride][::-1] if stride > 1 else snapshots
