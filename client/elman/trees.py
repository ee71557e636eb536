"""Trees, put into requests: as an s-expression, or node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elman_protos import v1


@dataclass(frozen=True)
class TreeNode:
    """A node of a tree, and with it all that is below it.

    Attributes:
        word: what stands at it; one token of the model's vocabulary.
        token_id: that token's id in its place.
        children: the nodes below it, the first child first. A node without any has a word or a token_id.
    """

    word: str | None = None
    token_id: int | None = None
    children: Sequence[TreeNode] = ()


def set_tree(message: v1.Tree, given: str | TreeNode) -> None:
    """Put a tree into a message: an s-expression as it is, else a list of nodes, each before its children and these in
    their order.

    Raises:
        ValueError, TypeError: it is neither.
    """
    if isinstance(given, str):
        message.s_expression = given
        return
    message.nodes.SetInParent()
    nodes = message.nodes.nodes
    left: list[tuple[TreeNode, int]] = [(given, -1)]
    while left:
        node, parent = left.pop()
        if not isinstance(node, TreeNode):
            raise TypeError(f"a tree is a str or a TreeNode, but there is {node!r}")
        if node.word is not None and node.token_id is not None:
            raise ValueError(f"a node has a word or a token_id, but one has both: {node.word!r} and {node.token_id}")
        place = len(nodes)
        if parent >= 0:
            nodes[parent].children.append(place)
        added = nodes.add()
        if node.word is not None:
            added.word = node.word
        if node.token_id is not None:
            added.token_id = node.token_id
        left += [(child, place) for child in reversed(node.children)]
