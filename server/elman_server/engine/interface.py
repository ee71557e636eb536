"""What scheduling asks of an engine. An engine whose outputs can be computed by hand implements it in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]

FREE = -1  # In the place of a token: the row reads the token that it chose after the step before.


@dataclass(frozen=True)
class OutputSelection:
    """What a run returns beyond tokens and labels. Tokens do not depend on it, to the bit.

    Attributes:
        logits: the logits after the last step.
        log_probabilities: the log-probability of one token after every step.
        states: the states after every step.
        outputs: every output of the step, after every step.
    """

    logits: bool = False
    log_probabilities: bool = False
    states: bool = False
    outputs: bool = False

    def __or__(self, other: OutputSelection) -> OutputSelection:
        """Everything that either of the two selects."""
        return OutputSelection(
            logits=self.logits or other.logits,
            log_probabilities=self.log_probabilities or other.log_probabilities,
            states=self.states or other.states,
            outputs=self.outputs or other.outputs,
        )


DEFAULT_OUTPUTS = OutputSelection()


@dataclass(frozen=True)
class Chunk:
    """The inputs of K steps of B rows. It does not say which rows these are.

    Attributes:
        inputs: by input name, [B, K, *shape]; FREE in the place of a token, except at the first step.
        uniforms: float32 [B, K], the random number of the choice after each step; see `elman_server.decoding`.
        temperatures: float32 [B].
        top_k: int64 [B], how many of the most probable tokens may be chosen; the size of the vocabulary for all.
        top_p: float32 [B], the probability mass of the most probable tokens that may be chosen; 1 for all.
        min_p: float32 [B], the least probability of a token that may be chosen, as a share of the largest; 0 for all.
        filtered: whether any row has a top_k, top_p or min_p; see `is_filtered`.
        selection: what the run returns beyond tokens and labels.
        targets: int64 [B, K], the token after each step whose log-probability is returned; FREE for the chosen one.
            None: FREE everywhere.
    """

    inputs: Arrays
    uniforms: NDArray[np.float32]
    temperatures: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    filtered: bool = False
    selection: OutputSelection = DEFAULT_OUTPUTS
    targets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.uniforms.shape[1])

    def steps(self, start: int, stop: int) -> Chunk:
        """The steps from `start` to `stop`."""
        return Chunk(
            {name: values[:, start:stop] for name, values in self.inputs.items()},
            self.uniforms[:, start:stop],
            self.temperatures,
            self.top_k,
            self.top_p,
            self.min_p,
            self.filtered,
            self.selection,
            None if self.targets is None else self.targets[:, start:stop],
        )

    def continue_from(self, step: int, tokens: NDArray[np.int64]) -> None:
        """Make `step` the first of a run: where it is FREE, a row reads its element of `tokens`, int64 [B]."""
        for values in self.inputs.values():
            np.copyto(values[:, step], tokens, where=values[:, step] == FREE)

    def part(self, rows: range) -> Chunk:
        """The part of adjacent rows."""
        some = slice(rows.start, rows.stop)
        return replace(
            self,
            inputs={name: values[some] for name, values in self.inputs.items()},
            uniforms=self.uniforms[some],
            temperatures=self.temperatures[some],
            top_k=self.top_k[some],
            top_p=self.top_p[some],
            min_p=self.min_p[some],
            targets=None if self.targets is None else self.targets[some],
        )


def is_filtered(
    top_k: NDArray[np.int64], top_p: NDArray[np.float32], min_p: NDArray[np.float32], vocabulary_size: int
) -> bool:
    """Returns whether any row samples from its most probable tokens only."""
    return bool((top_k < vocabulary_size).any() or (top_p < 1).any() or min_p.any())


@dataclass(frozen=True)
class Results:
    """The outputs of a chunk. The arrays are valid until its rows run again.

    Attributes:
        outputs: by the name of each output with labels, [B, K, labels]; where outputs were selected, by the name of
            each output, [B, K, *shape].
        tokens: int64 [B, K], the choice of each row after each step; no columns if the model generates nothing.
        failed: bool [B, K], where no token could be chosen because the model's output is not finite.
        logits: float32 [B, V], after the last step, as the model returned them: before any temperature, with the
            unknown token. None where they were not selected or the model generates nothing.
        log_probabilities: float32 [B, K], of the chunk's targets under softmax of such logits; -inf for a token that
            the model excludes, NaN where its output is NaN. None like `logits`.
        states: by state input name, [B, K, *shape], after each step; empty where they were not selected.
    """

    outputs: dict[str, NDArray[Any]]
    tokens: NDArray[np.int64]
    failed: NDArray[np.bool_]
    logits: NDArray[np.float32] | None = None
    log_probabilities: NDArray[np.float32] | None = None
    states: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """The outputs of an encoder for one source.

    Attributes:
        constants: by constant name, without the row axis; those of variable length have the length of the source.
        state: the initial values that depend on the source, by state input name, without the row axis.
    """

    constants: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]


class Engine(Protocol):
    """One model and the recurrent state of the sequences that run on it.

    A row holds one sequence. The caller keeps the rows in use compact: 0 to count - 1. One thread owns the engine; it
    may let other threads run and commit rows, each its own, while it calls nothing else.
    """

    @property
    def capacity(self) -> int:
        """The number of rows."""
        ...

    @property
    def provider(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        ...

    def step_counts_for(self, filtered: bool, selection: OutputSelection) -> Sequence[int]:
        """Returns the numbers of steps that one run can take, ascending from 1.

        Args:
            filtered: whether any row has a top_k, top_p or min_p.
            selection: what the run returns beyond tokens and labels.
        """
        ...

    def encode(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        """Encode sources, [positions, *shape] each; only where the model has an encoder.

        Raises:
            EngineError: it failed.
        """
        ...

    def insert(self, row: int, state: Arrays | None = None, encoded: Encoded | None = None) -> None:
        """Write the state and the constants of a new sequence.

        Args:
            row: its row; all rows in use are before it.
            state: by state input name, without the row axis, as `extract` returned it; None: the initial state.
            encoded: the result of `encode` for its source, where the model has an encoder.
        """
        ...

    def release(self, row: int) -> None:
        """The row is not used any more."""
        ...

    def move(self, source: int, destination: int) -> None:
        """Copy everything that `source` holds to `destination`; `source` is then free."""
        ...

    def rearrange(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Copy everything that each of `sources` holds to the row in the same place of `rows`, simultaneously."""
        ...

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        """A copy of a row's state by state input name, without the row axis."""
        ...

    def divide(self, count: int) -> list[range]:
        """Returns how `count` rows run fastest: as one range, or divided into ranges that one thread each runs."""
        ...

    def run(self, rows: range, chunk: Chunk, *, partition: int | None = None) -> Results:
        """Compute some steps of `rows`. The state after them is kept apart until `commit`.

        Args:
            rows: adjacent rows, as many as the chunk has.
            chunk: the steps; their number is one of `step_counts_for` its selection.
            partition: which of the ranges of `divide` these rows are, if others run at the same time.

        Raises:
            EngineError: a step failed; no row has changed.
        """
        ...

    def replay(self, row: int, inputs: Arrays) -> None:
        """Replace the uncommitted state of one row by the state some steps after its last commit: for a row that
        finished in the middle of a chunk and will be continued.

        Args:
            row: the row; it has been run since the last commit.
            inputs: by input name, [steps, *shape]; none of them FREE. No steps: the state does not change.
        """
        ...

    def prefill(self, rows: range, inputs: Arrays) -> None:
        """Take and commit forced steps of `rows`, while all other rows stay as they are. Their choices are dropped.

        Args:
            rows: adjacent rows.
            inputs: by input name, [B, steps, *shape], none of them FREE; the number of steps is one of
                `step_counts_for` runs that return tokens and labels only.

        Raises:
            EngineError: a step failed; no row has changed.
        """
        ...

    def commit(self, rows: range) -> None:
        """Make the state after the last run of `rows` their state. Rows that were not run since their last commit hold
        no meaningful state afterwards."""
        ...


@dataclass(frozen=True)
class NodeResults:
    """The outputs of a run over nodes of trees.

    Attributes:
        places: int64 [B], where the state of each node is kept.
        outputs: by the name of each output with labels, [B, labels].
    """

    places: NDArray[np.int64]
    outputs: dict[str, NDArray[Any]]


NO_CHILD = 0  # In the place of a child's place.


class TreeEngine(Protocol):
    """One model whose steps are taken at the nodes of trees, and the states of nodes whose parents are not computed
    yet.

    Not thread-safe; one thread owns it.
    """

    @property
    def capacity(self) -> int:
        """The largest number of nodes in a run."""
        ...

    @property
    def provider(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        ...

    @property
    def child_count(self) -> int:
        """The number of children of a node that is not a leaf; 0: any number."""
        ...

    def run(self, tokens: NDArray[np.int64], children: NDArray[np.int64]) -> NodeResults:
        """Take the step at some nodes.

        Args:
            tokens: int64 [B], their inputs.
            children: int64 [B, C], where the states of their children are kept, in order, padded with NO_CHILD. C is
                `child_count`, or any number of at least 1 where that is 0.

        Raises:
            EngineError: it failed; nothing has changed.
        """
        ...

    def known(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where the states of leaves that read `tokens` are kept; NO_CHILD where they have not been computed.
        Such a state depends on the token alone and is kept for good."""
        ...

    def release(self, places: NDArray[np.int64]) -> None:
        """Free the states at `places`, except those of leaves that are kept for good."""
        ...

    def release_all(self) -> None:
        """Free all states, except those of leaves that are kept for good."""
        ...
