"""What of sessions is measured, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases.model import PRECISIONS

CASES = ("durability", "idle", "prefix")


@dataclass(frozen=True)
class SessionOptions:
    """What to measure. The defaults are what the results in the repository were made with.

    Attributes:
        cases: of CASES.
        precisions: of the bundles; idle sessions are the same in all of them and are measured in the first.
        repeats: durability: the medians over so many are quoted.
        seconds: durability: one measurement takes at least so long.
        streams: durability: S.
        prompt_tokens: of every prompt but the long ones.
        max_tokens: durability: of every stream.
        temperature: of the sampling.
        sessions: idle: N.
        wakes: idle: so many of them are called.
        pairs: prefix: so many prompts are asked, each twice.
        long_prompt: prefix: the length of each.
        server_options: for `elman serve`, beside what a case needs.
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
        """Whether the figures may stand beside those in the repository."""
        usual = SessionOptions()
        return self.repeats >= usual.repeats and self == SessionOptions(
            cases=self.cases, precisions=self.precisions, repeats=self.repeats
        )
