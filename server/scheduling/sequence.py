"""A sequence: what one caller wants of a model, from the first step to the last.

At each step a sequence either takes its next input from the caller (a forced step) or feeds its own output back (a
free step). A Reading has forced steps only; a Generation goes on freely when its prompt is used up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.decoding import UniformStream
from server.engine import Arrays


class FinishReason(Enum):
    """Why a generation ended."""

    MAX_TOKENS = "max_tokens"
    END_TOKEN = "end_token"


@dataclass(frozen=True)
class Tokens:
    """New tokens of a generation."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    """The end of a generation."""

    reason: FinishReason


@dataclass(frozen=True)
class ReadingFinished:
    """The end of a reading.

    Attributes:
        outputs: [steps, *shape] if every step was asked for, else [1, *shape], the last one's.
        state: the state after the last step, by state input name, if it was asked for.
    """

    outputs: NDArray[Any]
    state: Arrays | None


@dataclass(frozen=True)
class Failed:
    """The end of a sequence that cannot go on."""

    error: Exception


Event = Tokens | Finished | ReadingFinished | Failed


class Receiver(Protocol):
    """Where a sequence's events go."""

    def receive(self, event: Event) -> None:
        """Take one event; called in order, and not after Finished, ReadingFinished or Failed."""
        ...


@dataclass(frozen=True)
class SamplingParams:
    """How a generation chooses its tokens and when it ends.

    Attributes:
        temperature: finite, not negative; 0 is greedy.
        seed: of the random numbers.
        max_tokens: the largest number of tokens, at least 1.
        end_token: the token that ends it, if there is one.
    """

    temperature: float
    seed: int
    max_tokens: int
    end_token: int | None = None


@dataclass(eq=False)
class Sequence(ABC):
    """One row's life.

    Attributes:
        forced: the inputs the caller gives, [steps, *shape], at least one step.
        receiver: where its events go.
        state: what it starts from; None: the model's initial state.
        position: the number of steps taken.
        aborted: set by anyone at any time; the scheduler then lets it go without a further event.
    """

    forced: NDArray[Any]
    receiver: Receiver
    state: Arrays | None = None
    position: int = field(default=0, init=False)
    aborted: bool = field(default=False, init=False)

    @property
    @abstractmethod
    def next_input(self) -> Any:
        """What the next step reads."""


@dataclass(eq=False)
class Generation(Sequence):
    """A prompt to be continued with tokens the model chooses."""

    params: SamplingParams = field(kw_only=True)
    tokens: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._uniforms = UniformStream(self.params.seed)

    @property
    def next_input(self) -> Any:
        return self.forced[self.position] if self.position < len(self.forced) else self.tokens[-1]

    @property
    def chooses(self) -> bool:
        """Whether a token is to be chosen after the step just taken."""
        return self.position >= len(self.forced)

    @property
    def uniform(self) -> float:
        """The random number for the token to be chosen now."""
        return self._uniforms.at(self.position)

    def accept(self, token: int) -> FinishReason | None:
        """Take the chosen token; tell whether it was the last."""
        if token == self.params.end_token:
            return FinishReason.END_TOKEN
        self.tokens.append(token)
        return FinishReason.MAX_TOKENS if len(self.tokens) == self.params.max_tokens else None


@dataclass(eq=False)
class Reading(Sequence):
    """An input to be read to its end, and what the model shows meanwhile.

    Attributes:
        every_step: whether the output of every step is wanted, or of the last one only.
        keep_state: whether the state after the last step is wanted, to go on from.
    """

    every_step: bool = field(kw_only=True)
    keep_state: bool = field(default=False, kw_only=True)
    outputs: list[NDArray[Any]] = field(default_factory=list, init=False)

    @property
    def next_input(self) -> Any:
        return self.forced[self.position]

    @property
    def is_done(self) -> bool:
        return self.position == len(self.forced)

    def show(self, output: NDArray[Any]) -> None:
        """Take the output of the step just taken."""
        if self.every_step or self.is_done:
            self.outputs.append(output.copy())

    def finished(self, state: Arrays | None) -> ReadingFinished:
        return ReadingFinished(np.stack(self.outputs), state)
