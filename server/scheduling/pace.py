"""How long chunks are, and how often tokens are handed on: what is fast for all against what is soon for one."""

from __future__ import annotations

from collections.abc import Sequence

_WEIGHT = 0.2  # of a new measurement against all before it


class Pace:
    """Learns how long steps take.

    Args:
        chunk_seconds: how long a chunk may take, as far as one step does not take longer: what a newcomer waits.
        messages_per_second: how many messages all streams of tokens together are sent, about. Tokens gather meanwhile;
            a message costs as much as some tokens' arithmetic.
    """

    def __init__(self, chunk_seconds: float, messages_per_second: float) -> None:
        self._chunk_seconds = chunk_seconds
        self._messages_per_second = messages_per_second
        self._step_seconds: dict[int, float] = {}  # by the power of two that the number of rows falls below

    def note(self, rows: int, count: int, seconds: float) -> None:
        """Learn that `count` steps of so many rows took so long."""
        bucket = rows.bit_length()
        known = self._step_seconds.get(bucket, seconds / count)
        self._step_seconds[bucket] = known + _WEIGHT * (seconds / count - known)

    def step_count(self, rows: int, most: int, available: Sequence[int]) -> int:
        """How many steps to run at once: the largest of `available` (ascending) that is at most `most` and fits into
        the time of a chunk; the smallest if none does, or if nothing is known about such a number of rows."""
        step_seconds = self._step_seconds.get(rows.bit_length())
        if step_seconds is None:
            return available[0]
        fitting = [count for count in available if count <= most and count * step_seconds <= self._chunk_seconds]
        return fitting[-1] if fitting else available[0]

    def interval(self, streams: int) -> float:
        """Seconds for which the tokens of one of so many streams gather."""
        return streams / self._messages_per_second
