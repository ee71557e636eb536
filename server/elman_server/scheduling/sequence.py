"""A sequence: one caller's request to a model, from the first step to the last.

At each step a sequence either takes its next input from the caller (a forced step) or feeds its own output back (a free
step). A Reading has forced steps only; a Generation continues with free steps after its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.beams import BeamParams, BeamSearch
from elman_server.decoding.constraints import Grammar, Matcher
from elman_server.decoding.host.shaping import Shaping
from elman_server.decoding.stopping import StopCheck
from elman_server.engine import DEFAULT_OUTPUTS, Arrays, Encoded, OutputSelection, Results
from elman_server.scheduling.callers import current_caller
from elman_server.scheduling.events import ReadingFinished, Receiver, TokenReport


@dataclass(frozen=True)
class SamplingParams:
    """How a generation chooses its tokens and when it finishes.

    Attributes:
        temperature: finite, at least 0; 0 is greedy.
        seed: of the random numbers.
        max_tokens: the largest number of generated tokens, at least 1.
        top_k: sample from this many of the most probable tokens, at least 1; None: from all.
        top_p: sample from the most probable tokens that together have this probability, above 0; 1: from all.
        min_p: sample from tokens with at least this share of the largest probability, 0 to 1; 0: from all.
        end_token: the token that finishes it, if there is one.
        shaping: changes of the logits before sampling, if there are any.
        grammar: what the generated text has to match, if anything.
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
        """Whether tokens have to be chosen on the host."""
        return self.shaping is not None or self.grammar is not None


@dataclass(eq=False)
class Source:
    """The input of an encoder. Sequences that share a source encode it once.

    Attributes:
        values: [positions, *shape], at least one position.
        encoded: the encoder's result, once one of the sequences has been admitted.
        failure: the error of the encoder, where it is a defect.
    """

    values: NDArray[Any]
    encoded: Encoded | None = field(default=None, init=False)
    failure: Exception | None = field(default=None, init=False)


@dataclass(frozen=True)
class Preempted:
    """What a sequence that has given up its rows needs to get rows again, for each of them.

    Attributes:
        keys: what the host sampler keeps it under.
        records: its records, see `RowTable`.
        states: its states, by state input name.
    """

    keys: Several[int]
    records: Several[NDArray[Any]]
    states: Several[Arrays]


@dataclass(eq=False)
class Sequence:
    """One caller's request.

    Attributes:
        forced: the inputs from the caller, [steps, *shape], at least one step.
        receiver: receives its events.
        state: the state it starts from; None: the model's initial state.
        source: the input of the encoder, where the model has one.
        position: the number of steps that led to that state. Random numbers depend on it.
        keep_state: whether its last event carries the state.
        snapshot_steps: about how many steps lie between two snapshots; None: no snapshots.
        selection: what it receives beyond tokens and labels. With logits it takes one step per run where it chooses.
        targets: where log-probabilities are selected, the token after each forced step that they are of, int64 [steps];
            None: the chosen token, as after free steps.
        caller: who it runs for.
        aborted: set by `Scheduler.abort` at any time; the sequence is then dropped without a further event.
        paused: set by `Scheduler.set_paused`; the sequence then has no slot.
        is_finished: set with its last event.
        started_at: when it was admitted for the first time, by `time.perf_counter`; 0 before.
        admitted_at: when it was admitted for the last time.
        preempted: what it needs to get slots again, where it has given them up.
    """

    forced: NDArray[Any]
    receiver: Receiver
    state: Arrays | None = None
    source: Source | None = field(default=None, kw_only=True)
    position: int = field(default=0, kw_only=True)
    keep_state: bool = field(default=False, kw_only=True)
    snapshot_steps: int | None = field(default=None, kw_only=True)
    selection: OutputSelection = field(default=DEFAULT_OUTPUTS, kw_only=True)
    targets: NDArray[np.int64] | None = field(default=None, kw_only=True)
    caller: str = field(default_factory=current_caller.get, kw_only=True)
    aborted: bool = field(default=False, init=False)
    paused: bool = field(default=False, init=False)
    is_finished: bool = field(default=False, init=False)
    started_at: float = field(default=0.0, init=False)
    admitted_at: float = field(default=0.0, init=False)
    preempted: Preempted | None = field(default=None, init=False)

    @property
    def max_steps(self) -> int:
        """The largest number of steps."""
        return len(self.forced)

    @property
    def row_count(self) -> int:
        """The largest number of rows."""
        return 1


@dataclass(eq=False)
class Generation(Sequence):
    """A prompt that is continued with tokens the model chooses.

    Attributes:
        params: how tokens are chosen.
        snapshots_prompt: take snapshots within the prompt only, one of them exactly before its last token, where
            another generation with the same prompt can start.
        interval: seconds for which its tokens may be coalesced, the first one excepted; 0: each is emitted immediately;
            None: the scheduler decides.
        history: the tokens before the forced ones, for penalties and grammars.
        generated_count: how many tokens at the end of the history and the forced tokens this call has generated before
            it was interrupted.
        matcher: has accepted what the grammar has to match of the history and the forced tokens; None: it has to match
            the generated ones among them.
        report_count: how many of the most probable tokens are reported with each token; None: no reports.
        stop: finds stop sequences; it has seen the tokens that were generated before.
        time_limit: the time, by `time.perf_counter`, at which it finishes with what there is.
        reports: of the tokens that wait to be emitted.
    """

    params: SamplingParams = field(kw_only=True)
    snapshots_prompt: bool = field(default=False, kw_only=True)
    interval: float | None = field(default=None, kw_only=True)
    history: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), kw_only=True)
    generated_count: int = field(default=0, kw_only=True)
    matcher: Matcher | None = field(default=None, kw_only=True)
    report_count: int | None = field(default=None, kw_only=True)
    stop: StopCheck | None = field(default=None, kw_only=True)
    time_limit: float | None = field(default=None, kw_only=True)
    reports: list[TokenReport] = field(default_factory=list, init=False)

    @property
    def max_steps(self) -> int:
        # The last token is not read.
        return len(self.forced) + self.params.max_tokens - 1

    def __post_init__(self) -> None:
        if self.params.needs_logits or self.report_count is not None:
            self.selection |= OutputSelection(logits=True)

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns all tokens so far: those it continues, and those that this call has generated."""
        tokens = np.concatenate([self.history, self.forced])
        border = len(tokens) - self.generated_count
        return tokens[:border], tokens[border:]


@dataclass(eq=False)
class Beams(Sequence):
    """A prompt whose most probable continuations are searched for, with one row per beam.

    Attributes:
        params: how to search.
        shaping: changes of the scores, if there are any.
        history: the tokens before the forced ones.
        time_limit: the time, by `time.perf_counter`, at which it finishes with what there is.
        rows: the rows of its beams, in the order of the search.
        search: the state of the search; None before the first step.
        step_count: the number of steps of all beams.
    """

    params: BeamParams = field(kw_only=True)
    shaping: Shaping | None = field(default=None, kw_only=True)
    history: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), kw_only=True)
    time_limit: float | None = field(default=None, kw_only=True)
    rows: list[int] = field(default_factory=list, init=False)
    search: BeamSearch | None = field(default=None, init=False)
    step_count: int = field(default=0, init=False)

    @property
    def max_steps(self) -> int:
        return len(self.forced) + self.params.max_tokens - 1

    @property
    def row_count(self) -> int:
        return self.params.width

    def __post_init__(self) -> None:
        self.selection |= OutputSelection(logits=True)
        self.step_count = len(self.forced) - 1  # Further steps are counted when they are taken.


@dataclass(eq=False)
class Reading(Sequence):
    """An input that is read to its end, and the outputs of the model.

    Attributes:
        every_step: whether the output of every step is returned, or of the last one only.
        output: the name of the returned output, which needs `selection.outputs`; None: the one with labels.
    """

    every_step: bool = field(kw_only=True)
    output: str | None = field(default=None, kw_only=True)
    outputs: list[NDArray[Any]] = field(default_factory=list, init=False)
    log_probabilities: list[NDArray[np.float32]] = field(default_factory=list, init=False)
    states: dict[str, list[NDArray[Any]]] = field(default_factory=dict, init=False)

    def show(self, results: Results, row: int, steps: int, label_output: str | None, *, last: bool) -> None:
        """Take the results of some steps, at least one.

        Args:
            results: the results of a chunk; they are copied, because the engine reuses their memory.
            row: the row.
            steps: how many of the chunk's steps are its own.
            label_output: the output with labels, if there is one.
            last: whether its last step is among them.
        """
        name = self.output or label_output
        if name is not None and (self.every_step or last):
            self.outputs.append(results.outputs[name][row, 0 if self.every_step else steps - 1 : steps].copy())
        if self.selection.log_probabilities and results.log_probabilities is not None:
            self.log_probabilities.append(results.log_probabilities[row, :steps].copy())
        if self.selection.states:
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
