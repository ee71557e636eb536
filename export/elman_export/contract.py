"""The step contract as a torch module, and what its inputs and outputs mean.

    step(inputs, constants, state) -> (outputs, state')

Any module that has `initial_state` and `step` can be exported; nothing here knows a cell by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from elman_bundle import InputVocabulary

Tensors = Mapping[str, Tensor]


@runtime_checkable
class StepModule(Protocol):
    """A `torch.nn.Module` with these two methods. Axis 0 of every tensor is the row: one sequence.

    It may also have `state_bounds`, a mapping from the names of states to the largest magnitude that their values can
    have, such as `{"hidden": 1.0}` for what comes out of a tanh. An int8 bundle then needs not measure them. Bounds
    that a rehearsal of the step goes beyond are refused.
    """

    def initial_state(self, rows: int) -> Tensors:
        """What a new sequence starts from, by name; the same for every row."""
        ...

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """One step: what changes, what stays, what is carried; to the outputs and the next state, whose names are
        those of the state."""
        ...


@runtime_checkable
class EncoderModule(Protocol):
    """A step module that reads something as a whole first. What it gives for a row must depend neither on the rows
    beside it nor on the padding behind the row's own source."""

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        """Read sources, once for each sequence.

        Args:
            source: [B, S] token ids or [B, S, *shape] numbers; zeros behind those that are shorter.
            lengths: int64 [B], at least 1.

        Returns:
            the constants by name, all of them; [B, S, ...] where they are of variable length, zeros behind the end. And
            the initial states that depend on the source, by name; the others are those of `initial_state`.
        """
        ...


@dataclass(frozen=True)
class Token:
    """An input that is one token id a row and step, int64 [B].

    Args:
        vocabulary: what the ids stand for.
        begin_id: a token that starts every sequence, if the model was trained with one.
        end_id: a token whose generation ends a sequence, if there is one.
    """

    vocabulary: InputVocabulary
    begin_id: int | None = None
    end_id: int | None = None


@dataclass(frozen=True)
class Values:
    """An input or a constant that is plain numbers, float32 [B, *shape].

    Args:
        shape: without the row axis, and without that of the position where there is one.
        variable_length: of a constant: whether it has something for each position of the source, [B, S, *shape].
    """

    shape: Sequence[int] = ()
    variable_length: bool = False


@dataclass(frozen=True)
class Source:
    """What `encode` reads.

    Args:
        kind: what stands at each position.
        longest: the most positions that are taken.
    """

    kind: Token | Values
    longest: int


@dataclass(frozen=True)
class Tree:
    """That a row is a node of a tree: `step` is given the states of its children, [B, C, *shape] each, and returns its
    own, [B, *shape]; `initial_state(rows)` has a node's shape. In the place of a missing child there are zeros.

    Args:
        children: how many children a node has that has any, C; 0 for any number.
        inner_id: the token that nodes read which have no word of their own.
    """

    children: int
    inner_id: int


@dataclass(frozen=True)
class NextToken:
    """An output that scores every token of the token input's vocabulary as the next one, float32 [B, V]."""


@dataclass(frozen=True)
class Labels:
    """An output that scores labels, float32 [B, labels].

    Args:
        names: the labels in the order of their ids.
        scope: whether a label speaks of the "sequence" so far or of the one "step".
    """

    names: Sequence[str]
    scope: Literal["sequence", "step"] = "sequence"


Input = Token | Values
Output = NextToken | Labels
