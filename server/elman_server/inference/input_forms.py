"""The forms in which requests give something to read.

Every input carries the path of its field in the request, for error messages. T: tokens, positions or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Token ids."""

    field: str
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class NumberInput:
    """A tensor of numbers.

    Attributes:
        field: its path in the request.
        name: of the model's input; "" for the only one.
        data_type: name of the element type, such as "float32".
        shape: T and the shape of the input.
        content: the numbers in C order, little-endian.
    """

    field: str
    name: str = ""
    data_type: str = ""
    shape: Sequence[int] = ()
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class NodeInput:
    """A node of a tree.

    Attributes:
        word: what it reads; None if that is given by its id or it reads nothing.
        token_id: the id of what it reads; likewise.
        children: places of its children in the list of nodes.
    """

    word: str | None
    token_id: int | None
    children: Sequence[int]


@dataclass(frozen=True, slots=True)
class TreeInput:
    """A tree, as an s-expression or as a list of nodes; as neither where the request does not say.

    Attributes:
        field: its path in the request.
        s_expression: the text.
        nodes: the list; makes the nodes when they are asked for.
        node_count: their number.
    """

    field: str
    s_expression: str | None = None
    nodes: Callable[[], list[NodeInput]] | None = None
    node_count: int = 0


Input = TextInput | TokenInput | NumberInput | TreeInput
