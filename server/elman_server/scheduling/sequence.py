"""A sequence: what one caller wants of a model, from the first step to the last.

At each step a sequence either takes its next input from the caller (a forced step) or feeds its own output back (a
free step). A Reading has forced steps only; a Generation goes on freely when its prompt is used up. Where it stands
while it runs is a record of the Batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.beams import BeamParams, BeamSearch, Hypothesis
from elman_server.decoding.constraints import Grammar
from elman_server.decoding.shaping import Shaping
from elman_server.decoding.stopping import StopCheck
from elman_server.engine import NOTHING, Arrays, Encoded, Results, Wanted


class FinishReason(Enum):
    """Why a generation ended."""

    MAX_TOKENS = "max_tokens"
    END_TOKEN = "end_token"
    STOP_SEQUENCE = "stop_sequence"
    TIME_LIMIT = "time_limit"
    CONSTRAINT = "constraint"


@dataclass(frozen=True)
class TokenReport:
    """How probable a token was, by the model itself: before shaping and temperature.

    Attributes:
        log_probability: the natural logarithm of its probability.
        most_likely: the ids of the most probable tokens in its place and theirs, the most probable first.
    """

    log_probability: float
    most_likely: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Tokens:
    """New tokens of a generation.

    Attributes:
        ids: which.
        reports: one for each, if they were asked for.
    """

    ids: tuple[int, ...]
    reports: tuple[TokenReport, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The state on the way; every token read up to there has been handed on.

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
        reason: why.
        position: the number of steps that led to the state. It is a step behind: the last token, of the prompt or
            generated, has not been read, so that whoever goes on from here can choose anew what follows it.
        state: the state after them, by state input name, if it was asked for.
        step_count: how many steps have been taken for it.
        begun: when the first of them was, by `time.perf_counter`.
    """

    reason: FinishReason
    position: int
    state: Arrays | None = None
    step_count: int = field(default=0, compare=False)
    begun: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class ReadingFinished:
    """The end of a reading.

    Attributes:
        outputs: [steps, *shape] if every step was asked for, else [1, *shape], the last one's.
            Empty where the model has no outputs to show.
        state: the state after the last step, by state input name, if it was asked for.
        log_probabilities: float32 [steps], of the reading's targets; empty where they were not wanted.
        states: by state input name, [steps, *shape], after every step; empty where they were not wanted.
    """

    outputs: NDArray[Any]
    state: Arrays | None
    log_probabilities: NDArray[np.float32]
    states: Arrays


@dataclass(frozen=True)
class BeamsFinished:
    """The end of a beam search.

    Attributes:
        hypotheses: what it has found, the best first.
        cut_short: whether its time limit ended it.
        step_count: how many steps have been taken for it, those of all beams together.
        begun: when the first of them was, by `time.perf_counter`.
    """

    hypotheses: tuple[Hypothesis, ...]
    cut_short: bool
    step_count: int
    begun: float


@dataclass(frozen=True)
class Failed:
    """The end of a sequence that cannot go on."""

    error: Exception


Event = Tokens | Snapshot | Finished | ReadingFinished | BeamsFinished | Failed


class Receiver(Protocol):
    """Where a sequence's events go."""

    def receive(self, event: Event) -> None:
        """Take one event; called in order, and not after Finished, ReadingFinished, BeamsFinished or Failed."""
        ...


@dataclass(frozen=True)
class SamplingParams:
    """How a generation chooses its tokens and when it ends.

    Attributes:
        temperature: finite, not negative; 0 is greedy.
        seed: of the random numbers.
        max_tokens: the largest number of tokens, at least 1.
        top_k: only so many of the most probable tokens are chosen from, at least 1; None, or more than there are: all.
        top_p: only the most probable tokens that together reach this probability are chosen from, above 0; 1: all.
        min_p: only tokens at least so probable, beside the most probable one, are chosen from, 0 to 1; 0: all.
        end_token: the token that ends it, if there is one.
        shaping: what changes the logits before, if anything does.
        grammar: what the whole of the generated text must match, if anything.
    """

    temperature: float
    seed: int
    max_tokens: int
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    end_token: int | None = None
    shaping: Shaping | None = None
    grammar: Grammar | None = None

    @property
    def needs_logits(self) -> bool:
        """Whether a token cannot be chosen inside the graph."""
        return self.shaping is not None or self.grammar is not None


@dataclass(eq=False)
class Source:
    """What an encoder reads before the first step. Sequences that share one have it read once.

    Attributes:
        values: [positions, *shape], at least one position.
        encoded: what the encoder has made of it, as soon as one of them has been given a row.
        failure: why the encoder has not, where that is a defect.
    """

    values: NDArray[Any]
    encoded: Encoded | None = field(default=None, init=False)
    failure: Exception | None = field(default=None, init=False)


@dataclass(eq=False)
class Sequence:
    """What one caller wants.

    Attributes:
        forced: the inputs the caller gives, [steps, *shape], at least one step.
        receiver: where its events go.
        state: what it starts from; None: the model's initial state.
        source: what its encoder reads, where the model has one.
        position: the number of steps that led to that state. Random numbers depend on it.
        keep_state: whether the state is wanted at the end, to go on from.
        snapshot_steps: after so many steps, about, the state is told on the way; None: never.
        wanted: what it is to be told beside tokens and labels. Who wants logits takes one step at a time where it
            chooses.
        targets: where log-probabilities are wanted, the token after each forced step that is meant, int64 [steps];
            None: the one that is chosen, as after free steps.
        aborted: set by `Scheduler.abort` at any time; the sequence is then let go without a further event.
        ended: set when its last event has been told.
        begun: when it was given a row, by `time.perf_counter`.
    """

    forced: NDArray[Any]
    receiver: Receiver
    state: Arrays | None = None
    source: Source | None = field(default=None, kw_only=True)
    position: int = field(default=0, kw_only=True)
    keep_state: bool = field(default=False, kw_only=True)
    snapshot_steps: int | None = field(default=None, kw_only=True)
    wanted: Wanted = field(default=NOTHING, kw_only=True)
    targets: NDArray[np.int64] | None = field(default=None, kw_only=True)
    aborted: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    begun: float = field(default=0.0, init=False)

    @property
    def longest(self) -> int:
        """The largest number of steps it can take."""
        return len(self.forced)

    @property
    def row_count(self) -> int:
        """The largest number of rows it can take."""
        return 1


@dataclass(eq=False)
class Generation(Sequence):
    """A prompt to be continued with tokens the model chooses.

    Attributes:
        params: how.
        snapshots_prompt: tell the state in the prompt only, and there, too, exactly before its last token: where
            another generation with the same prompt can begin.
        interval: seconds for which its tokens may gather before they are handed on, the first one excepted; 0: as soon
            as they are there; None: as the scheduler sees fit.
        history: the tokens before the forced ones, for what looks back at them.
        generated_count: how many of the history and the forced tokens together, the last of them, this call has
            generated itself, before it was broken off.
        report_count: how many of the most probable tokens are to be reported with each; None: no reports.
        stop: tells where a stop sequence ends it; has been told what was generated before.
        time_limit: the time, by `time.perf_counter`, at which it ends with what there is.
        reports: of the tokens that wait to be handed on.
    """

    params: SamplingParams = field(kw_only=True)
    snapshots_prompt: bool = field(default=False, kw_only=True)
    interval: float | None = field(default=None, kw_only=True)
    history: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), kw_only=True)
    generated_count: int = field(default=0, kw_only=True)
    report_count: int | None = field(default=None, kw_only=True)
    stop: StopCheck | None = field(default=None, kw_only=True)
    time_limit: float | None = field(default=None, kw_only=True)
    reports: list[TokenReport] = field(default_factory=list, init=False)

    @property
    def longest(self) -> int:
        # The last token is chosen, but not read.
        return len(self.forced) + self.params.max_tokens - 1

    def __post_init__(self) -> None:
        if self.params.needs_logits or self.report_count is not None:
            self.wanted |= Wanted(logits=True)

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All tokens so far: what it continues, and what this call has generated."""
        tokens = np.concatenate([self.history, self.forced])
        border = len(tokens) - self.generated_count
        return tokens[:border], tokens[border:]


@dataclass(eq=False)
class Beams(Sequence):
    """A prompt whose most probable continuations are searched for, side by side in as many rows as the search is wide.

    Attributes:
        params: how.
        shaping: what changes the scores before, if anything does.
        history: the tokens before the forced ones.
        time_limit: the time, by `time.perf_counter`, at which it ends with what there is.
        rows: where its beams are, in the order of the search.
        search: how far it is; from its first step on.
        step_count: how many steps have been taken, those of all beams together.
    """

    params: BeamParams = field(kw_only=True)
    shaping: Shaping | None = field(default=None, kw_only=True)
    history: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), kw_only=True)
    time_limit: float | None = field(default=None, kw_only=True)
    rows: list[int] = field(default_factory=list, init=False)
    search: BeamSearch | None = field(default=None, init=False)
    step_count: int = field(default=0, init=False)

    @property
    def longest(self) -> int:
        return len(self.forced) + self.params.max_tokens - 1

    @property
    def row_count(self) -> int:
        return self.params.width

    def __post_init__(self) -> None:
        self.wanted |= Wanted(logits=True)
        self.step_count = len(self.forced) - 1  # The rest is counted when it is taken.


@dataclass(eq=False)
class Reading(Sequence):
    """An input to be read to its end, and what the model shows meanwhile.

    Attributes:
        every_step: whether the output of every step is wanted, or of the last one only.
        output: the name of the output to be shown, which needs `wanted.outputs`; None: the one that means labels.
    """

    every_step: bool = field(kw_only=True)
    output: str | None = field(default=None, kw_only=True)
    outputs: list[NDArray[Any]] = field(default_factory=list, init=False)
    log_probabilities: list[NDArray[np.float32]] = field(default_factory=list, init=False)
    states: dict[str, list[NDArray[Any]]] = field(default_factory=dict, init=False)

    def show(self, results: Results, row: int, steps: int, label_output: str | None, *, last: bool) -> None:
        """Take what some steps, one at least, have brought.

        Args:
            results: a chunk's; what is wanted of them is copied, because theirs is the engine's memory.
            row: where it runs.
            steps: how many of the chunk's steps are its own.
            label_output: the output that means labels, if any.
            last: whether its last step is among them.
        """
        name = self.output or label_output
        if name is not None and (self.every_step or last):
            self.outputs.append(results.outputs[name][row, 0 if self.every_step else steps - 1 : steps].copy())
        if self.wanted.log_probabilities and results.log_probabilities is not None:
            self.log_probabilities.append(results.log_probabilities[row, :steps].copy())
        if self.wanted.states:
            for name, values in results.states.items():
                self.states.setdefault(name, []).append(values[row, :steps].copy())

    def finished(self, state: Arrays | None) -> ReadingFinished:
        return ReadingFinished(
            outputs=_joined(self.outputs),
            state=state,
            log_probabilities=_joined(self.log_probabilities),
            states={name: _joined(values) for name, values in self.states.items()},
        )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
