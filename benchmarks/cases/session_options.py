"""The options of the session cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases.model import PRECISIONS

CASES = ("durability", "idle", "prefix")


@dataclass(frozen=True)
class SessionOptions:
    """What to measure. The results in the repository were measured with the defaults.

    Attributes:
        cases: names from CASES.
        precisions: of the bundles; idle sessions do not depend on it and are measured with the first one.
        repeats: durability: number of repeats; medians are reported.
        seconds: durability: minimum duration of one measurement.
        streams: durability: number of concurrent streams.
        prompt_tokens: length of every prompt except the long ones.
        max_tokens: durability: tokens that every stream generates.
        temperature: sampling temperature.
        sessions: idle: number of idle sessions.
        wakes: idle: number of sessions that are called.
        pairs: prefix: number of prompts, each of which is sent twice.
        long_prompt: prefix: tokens of each prompt.
        server_options: further options of `elman serve`, besides those that a case sets.
    """

    cases: Sequence[str] = CASES
    precisions: Sequence[str] = PRECISIONS
    repeats: int = 5
    seconds: float = 1.5
    streams: int = 64
    prompt_tokens: int = 32
    max_tokens: int = 256
    temperature: float = 0.8
    sessions: int = 100_000
    wakes: int = 1000
    pairs: int = 20
    long_prompt: int = 4096
    server_options: Sequence[str] = ()

    @property
    def worth_keeping(self) -> bool:
        """Whether the results are comparable with those in the repository."""
        usual = SessionOptions()
        return self.repeats >= usual.repeats and self == SessionOptions(
            cases=self.cases, precisions=self.precisions, repeats=self.repeats
        )
