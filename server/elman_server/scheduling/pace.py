"""How long chunks are, and how often tokens are handed on: what is fast for all against what is soon for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

_Key = TypeVar("_Key")

_FASTER, _SLOWER = 0.5, 0.1  # the weight of a new measurement against all before it
_FAR = 3600.0  # seconds
_AHEAD_SHARE = 0.05  # of the time, for those who read ahead
_AHEAD_CHUNKS = 8  # of all rows, between two runs ahead
_MOST_AHEAD_CHUNKS = 4  # that are run ahead one after the other
_AHEAD_GAIN = 2  # times as fast as beside all others, at least
_HOPE = 0.98  # what is too slow is taken for so much of that at the next time
_LONGEST_GATHERING = 0.16  # seconds; a text that comes in pieces further apart does not flow any more
_MOST = 1.5  # times what is known: beyond, a measurement counts as this


class Pace:
    """Learns how long steps take.

    Args:
        chunk_seconds: how long a chunk may take, as far as one step does not take longer: what a newcomer waits.
        gather_seconds: for how long the tokens of a stream gather at least: a message costs as much as the arithmetic
            of some tokens.
        messages_per_second: how many messages all streams together are sent, about. With many streams their tokens
            gather for longer.
        telling_share: the share of the time that telling the streams may keep the model waiting, about: where that
            takes longer, tokens gather for longer, too, as far as a text still flows. 0: it does not matter.
    """

    def __init__(
        self, chunk_seconds: float, gather_seconds: float, messages_per_second: float, telling_share: float = 0.0
    ) -> None:
        self._chunk_seconds = chunk_seconds
        self._gather_seconds = gather_seconds
        self._messages_per_second = messages_per_second
        self._telling_share = telling_share
        self._ahead_seconds, self._ahead_since = 0.0, 0.0  # what may be run ahead, and as of when
        self._telling_seconds: dict[int, float] = {}  # by the power of two that the number of streams falls below
        self._step_seconds: dict[int, float] = {}  # by the power of two that the number of rows falls below
        self._ahead_run_seconds: dict[tuple[int, int], float] = {}  # likewise, and by the number of steps

    def note(self, rows: int, count: int, seconds: float) -> None:
        """Learn that `count` steps of so many rows took so long."""
        # What a run takes that nothing disturbs: a slow one says little, or the next ones would be short for no reason,
        # and short runs are slow.
        _learn(self._step_seconds, rows.bit_length(), seconds / count)

    def note_telling(self, streams: int, seconds: float) -> None:
        """Learn that telling so many streams has kept the model waiting for so long."""
        _learn(self._telling_seconds, streams.bit_length(), seconds)

    def step_count(self, rows: int, most: int, available: Sequence[int], *, exact: bool = False) -> int:
        """How many steps to run at once: as many of `available` (ascending) as fit into the time of a chunk, and about
        `most`; the smallest if nothing is known about such a number of rows.

        Args:
            rows: how many rows run.
            most: how many steps are of use.
            available: the numbers to choose from.
            exact: never more than `most`. Else up to a quarter of the steps may be of no use, because one chunk that is
                a little too long is faster than two or three short ones.
        """
        step_seconds = self._step_seconds.get(rows.bit_length())
        if step_seconds is None:
            return available[0]
        useful = most if exact else most * 4 // 3
        fitting = [count for count in available if count <= useful and count * step_seconds <= self._chunk_seconds]
        return fitting[-1] if fitting else available[0]

    def count_ahead(self, rows: int, all_rows: int, most: int, available: Sequence[int], now: float) -> int:
        """How many steps some rows that still read may be ahead of the others; 0: none, for now.

        What is run ahead keeps the others waiting: it may take a twentieth of the time, and what it has not taken for a
        while it may take later, but never more than a chunk in one run, and four in a row. And it has to be worth it:
        each of these steps is one that they need not take beside the others.

        Args:
            rows: how many they are.
            all_rows: how many rows run.
            most: how many steps they have before them.
            available: how many one run can take, ascending.
            now: the time.
        """
        self._note_time(now)
        usual = self._step_seconds.get(all_rows.bit_length(), math.inf)
        budget = min(self._ahead_seconds, self._chunk_seconds)
        for count in reversed(available):
            if count <= most and self._run_ahead_seconds(rows, count, usual * rows / all_rows, usual) <= budget:
                return count
        return 0

    def cuts_short(self, rows: int, now: float) -> bool:
        """Whether a run of so many rows ends where one of them has its first token. It costs them about a step, which
        is taken from the time for those who read ahead."""
        self._note_time(now)
        seconds = self._step_seconds.get(rows.bit_length(), math.inf)
        if seconds > self._ahead_seconds:
            return False
        self._ahead_seconds -= seconds
        return True

    def _note_time(self, now: float) -> None:
        self._ahead_seconds += _AHEAD_SHARE * (now - self._ahead_since)
        self._ahead_seconds = min(self._ahead_seconds, _MOST_AHEAD_CHUNKS * self._chunk_seconds)
        self._ahead_since = now

    def _run_ahead_seconds(self, rows: int, count: int, hoped: float, usual: float) -> float:
        """How long `count` steps ahead are expected to take; infinite where that is too long.

        Args:
            rows: of so many rows.
            count: the number of steps.
            hoped: seconds of a step as long as nothing is known.
            usual: seconds of a step of all rows.
        """
        known, key = self._ahead_run_seconds, (rows.bit_length(), count)
        seconds = known.get(key, hoped * count)
        if seconds <= self._chunk_seconds and _AHEAD_GAIN * seconds <= usual * count:
            return seconds
        if key in known:  # It was so at some moment, which must not decide for all newcomers to come.
            known[key] *= _HOPE
        return math.inf

    @property
    def until_ahead(self) -> float:
        """Seconds after which it is time to run some rows ahead again."""
        return _AHEAD_CHUNKS * self._chunk_seconds

    def note_ahead(self, rows: int, count: int, seconds: float) -> None:
        """Learn that `count` steps ahead of so many rows took so long."""
        _learn(self._ahead_run_seconds, (rows.bit_length(), count), seconds)
        self._ahead_seconds -= seconds

    def steps_in(self, rows: int, seconds: float) -> int:
        """How many steps of so many rows can be taken in a time; 0 if nothing is known about such a number of rows."""
        step_seconds = self._step_seconds.get(rows.bit_length())
        return 0 if step_seconds is None else max(0, int(min(seconds, _FAR) / step_seconds))

    def interval(self, streams: int) -> float:
        """Seconds for which the tokens of one of so many streams gather: the least of them, doubled as often as needed.
        So the times at which streams are written to coincide, however many there are."""
        least = max(self._gather_seconds, 1 / self._messages_per_second)
        wanted = streams / self._messages_per_second
        if self._telling_share:
            telling_seconds = self._telling_seconds.get(streams.bit_length(), 0.0)
            wanted = max(wanted, min(telling_seconds / self._telling_share, _LONGEST_GATHERING))
        doublings = max(0, math.ceil(math.log2(wanted / least)))
        return math.ldexp(least, doublings)


def _learn(known: dict[_Key, float], key: _Key, measured: float) -> None:
    """Bring what is known nearer to a measurement."""
    before = known.get(key, measured)
    weight = _FASTER if measured < before else _SLOWER
    known[key] = before + weight * (min(measured, _MOST * before) - before)
