"""What requests give to read: texts, token ids, tensors and trees."""

from __future__ import annotations

from collections.abc import Iterable

from elman_protos import v1
from elman_protos.element_types import BY_DATA_TYPE
from elman_server.inference.input_forms import Input, NodeInput, NumberInput, TextInput, TokenInput, TreeInput

_WithInput = (
    v1.GenerateRequest
    | v1.ChooseRequest
    | v1.ClassifyRequest
    | v1.CreateSessionRequest
    | v1.Piece
    | v1.AnalysisInput
    | v1.Source
    | v1.Choice
)


def parse_input(message: _WithInput, form: str | None, path: str = "") -> Input | None:
    """Return what a message gives to read; None for nothing.

    Args:
        message: the message.
        form: the field of its oneof that is set.
        path: path of the message in the request, with a dot behind it; "" for the request itself.
    """
    if form is None:
        return None
    field = path + form
    if form == "text":
        return TextInput(field, message.text)
    if form == "tokens":
        return TokenInput(field, message.tokens.ids)
    if form == "tensor":
        assert isinstance(message, v1.ClassifyRequest | v1.Piece | v1.Source)
        return _parse_tensor(message.tensor, field)
    assert isinstance(message, v1.ClassifyRequest)
    return _parse_tree(message.tree, field)


def parse_source(request: v1.GenerateRequest | v1.ChooseRequest | v1.ScoreRequest) -> Input | None:
    """Return the source of a request; None for nothing."""
    if not request.HasField("source"):
        return None
    return parse_input(request.source, request.source.WhichOneof("form"), "source.") or TextInput("source", "")


def parse_inputs(messages: Iterable[v1.AnalysisInput | v1.Choice], field: str) -> list[Input]:
    """Return the inputs of a list; one that is not set is an empty text."""
    found: list[Input] = []
    for index, message in enumerate(messages):
        path = f"{field}[{index}]."
        form = message.WhichOneof("form") if isinstance(message, v1.Choice) else message.WhichOneof("input")
        found.append(parse_input(message, form, path) or TextInput(f"{path}text", ""))
    return found


def _parse_tensor(tensor: v1.Tensor, field: str) -> NumberInput:
    kind = BY_DATA_TYPE.get(tensor.data_type)
    data_type = kind.name if kind else f"type {tensor.data_type}"
    return NumberInput(field, tensor.name, data_type, tensor.shape, tensor.content)


def _parse_tree(tree: v1.Tree, field: str) -> TreeInput:
    form = tree.WhichOneof("form")
    if form == "s_expression":
        return TreeInput(field, s_expression=tree.s_expression)
    if form == "nodes":
        nodes = tree.nodes.nodes
        # Made later, on a thread where they are many.
        return TreeInput(field, nodes=lambda: [_parse_node(node) for node in nodes], node_count=len(nodes))
    return TreeInput(field)


def _parse_node(node: v1.TreeNode) -> NodeInput:
    content = node.WhichOneof("content")
    return NodeInput(
        node.word if content == "word" else None,
        node.token_id if content == "token_id" else None,
        node.children,
    )
