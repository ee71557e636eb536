"""The step contract as a torch module, and the meaning of its inputs and outputs.

    step(inputs, constants, state) -> (outputs, state')

Any module that has `initial_state` and `step` can be exported; nothing here knows a cell by name.

Axes: B rows, S source positions, C children, V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from elman_bundle import InputVocabulary

Tensors = Mapping[str, Tensor]


@runtime_checkable
class StepModule(Protocol):
    """A `torch.nn.Module` with these two methods. Axis 0 of every tensor is the row: one sequence.

    It may also have `state_bounds`, a mapping from the names of states to the largest magnitude of their values, such
    as `{"hidden": 1.0}` for the result of a tanh. An int8 export then does not measure them. Bounds that a state
    exceeds in a trial run are refused.
    """

    def initial_state(self, rows: int) -> Tensors:
        """The state that a new sequence starts from, by name; the same for every row."""
        ...

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """Compute one step.

        Args:
            inputs: the values that change at every step, [B, *shape] by name.
            constants: the values that stay for a sequence, [B, *shape] by name.
            state: the values that the model carries from step to step, [B, *shape] by name.

        Returns:
            The outputs by name, and the next state under the names of the state.
        """
        ...


@runtime_checkable
class EncoderModule(Protocol):
    """A step module that first reads a whole source.

    The result for a row must depend neither on the other rows nor on the padding after the end of its own source.
    """

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        """Read sources, once for each sequence.

        Args:
            source: [B, S] token ids or [B, S, *shape] numbers; zeros after the end of the shorter ones.
            lengths: int64 [B], at least 1.

        Returns:
            All constants by name, [B, S, ...] with zeros after the end if they have a variable length; and by name the
            initial states that depend on the source. The other initial states are those of `initial_state`.
        """
        ...


@dataclass(frozen=True)
class Token:
    """An input that is one token id for each row and step, int64 [B].

    Attributes:
        vocabulary: the vocabulary of the ids.
        begin_id: a token that starts every sequence, if the model was trained with one.
        end_id: a token that ends a sequence when it is generated, if there is one.
    """

    vocabulary: InputVocabulary
    begin_id: int | None = None
    end_id: int | None = None


@dataclass(frozen=True)
class Values:
    """An input or a constant that is numbers, float32 [B, *shape].

    Attributes:
        shape: the shape without the row axis, and without the axis of positions if there is one.
        variable_length: for a constant, whether it has a value for each position of the source, [B, S, *shape].
    """

    shape: Sequence[int] = ()
    variable_length: bool = False


@dataclass(frozen=True)
class Source:
    """The argument of `encode`.

    Attributes:
        kind: what each position holds.
        longest: the largest number of positions.
    """

    kind: Token | Values
    longest: int


@dataclass(frozen=True)
class Tree:
    """Declares that a row is a node of a tree.

    `step` then takes the states of the children, [B, C, *shape] each, and returns the node's own, [B, *shape];
    `initial_state(rows)` has the shape of a node's states. Zeros stand for a missing child.

    Attributes:
        children: the number of children of every inner node, C; 0 for any number.
        inner_id: the token that nodes without a word read.
    """

    children: int
    inner_id: int


@dataclass(frozen=True)
class NextToken:
    """An output with a logit for every token of the token input's vocabulary as the next one, float32 [B, V].

    It may have more columns, which are padding and are never chosen.
    """


@dataclass(frozen=True)
class Labels:
    """An output with a logit for every label, float32 [B, labels].

    Attributes:
        names: the labels in the order of their ids.
        scope: whether a label belongs to the "sequence" read so far or to the one "step".
    """

    names: Sequence[str]
    scope: Literal["sequence", "step"] = "sequence"


Input = Token | Values
Output = NextToken | Labels


@dataclass(frozen=True)
class StepInterface:
    """What a module's step reads and returns.

    Attributes:
        inputs: the inputs by name.
        outputs: the meanings of the outputs to export, by name.
        constants: the constants by name.
        source: what `encode` reads; None for a module without an encoder.
        tree: whether rows are nodes of trees, and of which.
    """

    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output] = field(default_factory=dict)
    constants: Mapping[str, Values] = field(default_factory=dict)
    source: Source | None = None
    tree: Tree | None = None
