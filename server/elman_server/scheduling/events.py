"""The events that a sequence receives, in the order in which they happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.beams import Hypothesis
from elman_server.engine import Arrays


class FinishReason(Enum):
    """Why a generation finished."""

    MAX_TOKENS = "max_tokens"
    END_TOKEN = "end_token"
    STOP_SEQUENCE = "stop_sequence"
    TIME_LIMIT = "time_limit"
    CONSTRAINT = "constraint"


# The reasons for which an answer is cut, and not at its end.
CUT = (FinishReason.MAX_TOKENS, FinishReason.TIME_LIMIT)


@dataclass(frozen=True)
class TokenReport:
    """The probability of a token under the model itself: before shaping and temperature.

    Attributes:
        log_probability: the natural logarithm of its probability.
        most_likely: the most probable tokens in its place with their log-probabilities, the most probable first.
    """

    log_probability: float
    most_likely: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Tokens:
    """New tokens of a generation.

    Attributes:
        ids: the tokens.
        reports: one for each token, if reports were requested.
    """

    ids: tuple[int, ...]
    reports: tuple[TokenReport, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The state at some position. Every token that was read until then has been emitted.

    Attributes:
        position: the number of steps taken.
        state: the state after them, by state input name.
    """

    position: int
    state: Arrays


@dataclass(frozen=True)
class Finished:
    """The end of a generation.

    Attributes:
        reason: why it finished.
        position: the number of steps that led to the state. It is one step behind: the last token, of the prompt or
            generated, has not been read, so that a continuation can choose again what follows it.
        state: the state after them, by state input name, if it was requested.
        step_count: the number of steps that were taken.
        started_at: when the first step was taken, by `time.perf_counter`.
    """

    reason: FinishReason
    position: int
    state: Arrays | None = None
    step_count: int = field(default=0, compare=False)
    started_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class ReadingFinished:
    """The end of a reading.

    Attributes:
        outputs: [steps, *shape] if every step was requested, else [1, *shape], of the last one. Empty where the model
            has no such output.
        state: the state after the last step, by state input name, if it was requested.
        log_probabilities: float32 [steps], of the reading's targets; empty where they were not selected.
        states: by state input name, [steps, *shape], after every step; empty where they were not selected.
    """

    outputs: NDArray[Any]
    state: Arrays | None
    log_probabilities: NDArray[np.float32]
    states: Arrays


@dataclass(frozen=True)
class BeamsFinished:
    """The end of a beam search.

    Attributes:
        hypotheses: the sequences that were found, the best first.
        cut_short: whether its time limit ended it.
        step_count: the number of steps of all its beams.
        started_at: when the first step was taken, by `time.perf_counter`.
    """

    hypotheses: tuple[Hypothesis, ...]
    cut_short: bool
    step_count: int
    started_at: float


@dataclass(frozen=True)
class Failed:
    """The end of a sequence that failed."""

    error: Exception


Event = Tokens | Snapshot | Finished | ReadingFinished | BeamsFinished | Failed


class Receiver(Protocol):
    """Receives the events of a sequence."""

    def receive(self, event: Event) -> None:
        """Take an event. Called in order, and not after Finished, ReadingFinished, BeamsFinished or Failed."""
        ...
