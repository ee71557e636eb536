"""What scheduling asks of an engine. The scheduler and the rpc room are tested against a hand-computable one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]

FREE = -1  # In the place of a token: the row goes on with what it chose after the step before.


@dataclass(frozen=True)
class Wanted:
    """What a run shall tell beside its tokens and labels. Tokens are the same to the bit whatever is wanted.

    Attributes:
        logits: those after its last step.
        log_probabilities: of one token after every step.
        states: those after every step.
        outputs: every output of the step after every step.
    """

    logits: bool = False
    log_probabilities: bool = False
    states: bool = False
    outputs: bool = False

    def __or__(self, other: Wanted) -> Wanted:
        """What either of the two wants."""
        return Wanted(
            logits=self.logits or other.logits,
            log_probabilities=self.log_probabilities or other.log_probabilities,
            states=self.states or other.states,
            outputs=self.outputs or other.outputs,
        )


NOTHING = Wanted()


@dataclass(frozen=True)
class Chunk:
    """A few steps of B rows, K at once; nothing in it says which rows those are.

    Attributes:
        inputs: by input name, [B, K, *shape]; FREE in the place of a token, but not at the first step.
        uniforms: float32 [B, K], the random number of the choice after each step; see `elman_server.decoding`.
        temperatures: float32 [B].
        top_k: int64 [B], how many of the most probable tokens may be chosen; the vocabulary's size for all.
        top_p: float32 [B], the share of probability from which the most probable tokens may be chosen; 1 for all.
        min_p: float32 [B], the least probability, beside that of the most probable token, of what may be chosen; 0 for
            all.
        filtered: whether any row has a top_k, top_p or min_p; see `is_filtered`.
        wanted: what is to be told beside tokens and labels.
        targets: int64 [B, K], the token after each step whose log-probability is wanted; FREE for the one that is
            chosen. None: that everywhere.
    """

    inputs: Arrays
    uniforms: NDArray[np.float32]
    temperatures: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    filtered: bool = False
    wanted: Wanted = NOTHING
    targets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.uniforms.shape[1])

    def steps(self, start: int, stop: int) -> Chunk:
        """Some of its steps."""
        return Chunk(
            {name: values[:, start:stop] for name, values in self.inputs.items()},
            self.uniforms[:, start:stop],
            self.temperatures,
            self.top_k,
            self.top_p,
            self.min_p,
            self.filtered,
            self.wanted,
            None if self.targets is None else self.targets[:, start:stop],
        )

    def go_on(self, step: int, tokens: NDArray[np.int64]) -> None:
        """Have a step that begins a run read what each row chose after the step before, int64 [B], where it is free."""
        for values in self.inputs.values():
            np.copyto(values[:, step], tokens, where=values[:, step] == FREE)

    def part(self, rows: range) -> Chunk:
        """Some of its rows, which follow each other."""
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
    """Whether any row may choose only among its most probable tokens."""
    return bool((top_k < vocabulary_size).any() or (top_p < 1).any() or min_p.any())


@dataclass(frozen=True)
class Results:
    """What a chunk has brought; arrays are valid until its rows run again.

    Attributes:
        outputs: by the name of each output that means labels, [B, K, labels]; where outputs were wanted, by the name of
            each output, [B, K, *shape].
        tokens: int64 [B, K], what each row chose after each step; no columns if the model generates nothing.
        failed: bool [B, K], where no token could be chosen because the model's output is not finite.
        logits: float32 [B, V], those after the last step as the model gave them: before any temperature, the unknown
            token among them. None where they were not wanted or the model generates nothing.
        log_probabilities: float32 [B, K], of the chunk's targets under softmax of such logits; -inf for a token that
            the model excludes, not a number where its output is none. None as with `logits`.
        states: by state input name, [B, K, *shape], after each step; empty where they were not wanted.
    """

    outputs: dict[str, NDArray[Any]]
    tokens: NDArray[np.int64]
    failed: NDArray[np.bool_]
    logits: NDArray[np.float32] | None = None
    log_probabilities: NDArray[np.float32] | None = None
    states: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """What an encoder has made of a source.

    Attributes:
        constants: by constant name, without the row axis; of variable length: with the source's own length.
        state: those initial values that depend on the source, by state input name, without the row axis.
    """

    constants: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]


class Engine(Protocol):
    """One model and the recurrent state of the sequences that run on it.

    A row is one sequence's place. Rows in use are kept compact by the caller: 0 to count - 1. One thread owns it, and
    may have others run and commit rows for it, each its own, while it calls nothing else.
    """

    @property
    def capacity(self) -> int:
        """The number of rows."""
        ...

    @property
    def provider(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        ...

    def step_counts_for(self, filtered: bool, wanted: Wanted) -> Sequence[int]:
        """How many steps one run can take, ascending; 1 is the first.

        Args:
            filtered: whether any row has a top_k, top_p or min_p.
            wanted: what the run shall tell.
        """
        ...

    def encode(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        """Read the sources of some sequences, [positions, *shape] each; only where the model has an encoder.

        Raises:
            EngineError: it failed.
        """
        ...

    def insert(self, row: int, state: Arrays | None = None, encoded: Encoded | None = None) -> None:
        """Give `row` to a new sequence: write its state, the initial one unless `state` is given, and its constants.

        Args:
            row: the place; all in use are before it.
            state: values by state input name, without the row axis, as `extract` returned them.
            encoded: what `encode` has made of its source, where the model has an encoder.
        """
        ...

    def release(self, row: int) -> None:
        """The row is not used any more."""
        ...

    def move(self, source: int, destination: int) -> None:
        """Copy everything that `source` holds to `destination`; `source` is then free."""
        ...

    def rearrange(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Copy everything that each of `sources` holds to the row in the same place of `rows`, as if all at once."""
        ...

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        """A copy of a row's state by state input name, without the row axis."""
        ...

    def lanes(self, count: int) -> list[range]:
        """How so many rows run fastest: together, which is one range, or some beside others, each range by a thread of
        its own."""
        ...

    def run(self, rows: range, chunk: Chunk, *, lane: int | None = None) -> Results:
        """Compute some steps of `rows` without taking them: the state they lead to is kept aside until `commit`.

        Args:
            rows: consecutive rows, as many as the chunk has.
            chunk: the steps, as many as one of `step_counts_for` what it asks.
            lane: which of the lanes they are, if other rows are run at the same time.

        Raises:
            EngineError: a step failed; no row has changed.
        """
        ...

    def replay(self, row: int, inputs: Arrays) -> None:
        """Change what is kept aside for one row to the state some steps from where the last commit left it: for a row
        that ended in the middle of a chunk and will be continued.

        Args:
            row: the row; it has been run since the last commit.
            inputs: by input name, [steps, *shape]; none of them FREE. No steps: the state is what it was.
        """
        ...

    def read_ahead(self, rows: range, inputs: Arrays) -> None:
        """Take some steps of `rows` for good, while all other rows stay as they are; what they choose is lost.

        Args:
            rows: consecutive rows.
            inputs: by input name, [B, steps, *shape], none of them FREE; as many steps as one of `step_counts_for` runs
                that tell nothing.

        Raises:
            EngineError: a step failed; no row has changed.
        """
        ...

    def commit(self, rows: range) -> None:
        """Take the steps computed of some rows since their last commit: what was kept aside becomes their state. Rows
        that were not run hold no meaningful state afterwards."""
        ...


@dataclass(frozen=True)
class NodeResults:
    """What a run over nodes of trees has brought.

    Attributes:
        places: int64 [B], where the state of each node is kept.
        outputs: by the name of each output that means labels, [B, labels].
    """

    places: NDArray[np.int64]
    outputs: dict[str, NDArray[Any]]


NO_CHILD = 0  # In the place of a child's place.


class TreeEngine(Protocol):
    """One model whose steps are taken at the nodes of trees, and the states of nodes whose parents are still to come.

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
        """How many children a node has that has any; 0 for any number."""
        ...

    def run(self, tokens: NDArray[np.int64], children: NDArray[np.int64]) -> NodeResults:
        """Take the step at some nodes.

        Args:
            tokens: int64 [B], what they read.
            children: int64 [B, C], where the states of their children are kept, the first child first; behind the last
                one NO_CHILD. C is `child_count`, or where that is 0 any number, 1 at least.

        Raises:
            EngineError: it failed; nothing has changed.
        """
        ...

    def known(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the states are kept of nodes without children that read these tokens, which depend on nothing else;
        NO_CHILD where they are not known from before. They stay there."""
        ...

    def release(self, places: NDArray[np.int64]) -> None:
        """Keep the states at these places no longer, unless they are known ones."""
        ...

    def release_all(self) -> None:
        """Keep no state any longer."""
        ...
