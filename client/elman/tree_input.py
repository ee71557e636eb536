"""Trees in requests: as an s-expression, or node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elman_protos import v1


@dataclass(frozen=True)
class TreeNode:
    """A node of a tree, with everything below it.

    Attributes:
        word: the word at the node, one token of the model's vocabulary.
        token_id: the id of the token, instead of its word.
        children: the nodes below it, the first child first. A node without children has a word or a token_id.
    """

    word: str | None = None
    token_id: int | None = None
    children: Sequence[TreeNode] = ()


def set_tree(message: v1.Tree, given: str | TreeNode) -> None:
    """Write a tree into a message.

    Args:
        message: the message.
        given: an s-expression, which is sent as it is, or a root, which is sent as a list of nodes, each before its
            children and these in their order.

    Raises:
        ValueError, TypeError: the tree is neither, or a node has both a word and a token_id.
    """
    if isinstance(given, str):
        message.s_expression = given
        return
    message.nodes.SetInParent()
    nodes = message.nodes.nodes
    pending: list[tuple[TreeNode, int]] = [(given, -1)]
    while pending:
        node, parent = pending.pop()
        if not isinstance(node, TreeNode):
            raise TypeError(f"got {node!r}; a tree is a str or a TreeNode")
        if node.word is not None and node.token_id is not None:
            raise ValueError(f"got a node with the word {node.word!r} and the token_id {node.token_id}; give only one")
        index = len(nodes)
        if parent >= 0:
            nodes[parent].children.append(index)
        added = nodes.add()
        if node.word is not None:
            added.word = node.word
        if node.token_id is not None:
            added.token_id = node.token_id
        pending += [(child, index) for child in reversed(node.children)]
