"""Trees given as lists of nodes in any order. Nothing here is recursive, so no tree is too deep to be checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elman_bundle import EncodingError
from elman_server.errors import InvalidFieldError, shortened
from elman_server.inference.input_forms import NodeInput
from elman_server.inference.model import ServedModel
from elman_server.inference.trees.nodes import MAX_DEPTH, NO_WORD, Nodes, too_deep


def read_node_list(nodes: Sequence[NodeInput], field: str, model: ServedModel) -> Nodes:
    """Put the nodes of a list in the order in which they run.

    Args:
        nodes: the nodes.
        field: the field that holds them.
        model: what reads them.

    Raises:
        InvalidFieldError: they are no tree.
    """
    count, path = len(nodes), f"{field}.nodes"
    if not count:
        raise InvalidFieldError(field, "no nodes", "a tree has one node or more")
    children = [list(node.children) for node in nodes]
    by_depth, depths = _by_depth(children, _root(children, field, path), path)
    order = np.array(by_depth)
    tokens = np.array([_token(node, f"{path}[{place}]", model) for place, node in enumerate(nodes)])
    counts = np.array([len(own) for own in children])
    return Nodes([count], tokens[order], counts[order], order, np.array(depths), lambda node: (f"{path}[{node}]", ""))


def _token(node: NodeInput, path: str, model: ServedModel) -> int:
    """Return what a node reads; NO_WORD for nothing."""
    if node.word is not None:
        try:
            return model.token_of(node.word)
        except EncodingError as error:
            raise InvalidFieldError(f"{path}.word", repr(shortened(node.word)), str(error)) from error
    if node.token_id is None:
        return NO_WORD
    size = model.vocabulary.size
    if not 0 <= node.token_id < size:
        rule = f"the ids of {model.name!r} are 0 to {size - 1}"
        raise InvalidFieldError(f"{path}.token_id", node.token_id, rule)
    return node.token_id


def _root(children: list[list[int]], field: str, path: str) -> int:
    """Return the only node without a parent.

    Raises:
        InvalidFieldError: there is none or more than one, or a node has two parents.
    """
    count = len(children)
    parents: dict[int, int] = {}
    for node, own in enumerate(children):
        for index, child in enumerate(own):
            place = f"{path}[{node}].children[{index}]"
            if not 0 <= child < count:
                raise InvalidFieldError(place, child, f"the nodes are 0 to {count - 1}")
            if child in parents:
                got = f"node {child} again" if parents[child] == node else f"{child}, a child of node {parents[child]}"
                raise InvalidFieldError(place, got, "a node has one parent")
            parents[child] = node
    roots = [node for node in range(count) if node not in parents]
    if not roots:
        raise InvalidFieldError(field, "no root", "every node is the child of another, so they form a cycle")
    if len(roots) > 1:
        raise InvalidFieldError(f"{path}[{roots[1]}]", f"a second root besides node {roots[0]}", "a tree has one root")
    return roots[0]


def _by_depth(children: list[list[int]], root: int, path: str) -> tuple[list[int], list[int]]:
    """Return all nodes, those nearer to the root first, and the depth of each. Each node but the root has one parent.

    Raises:
        InvalidFieldError: some nodes are not reached from the root, or are too far from it.
    """
    order, depths = [root], [0]
    level = [root]
    while level:
        if len(order) > len(depths):
            depths += [depths[-1] + 1] * len(level)
        if depths[-1] >= MAX_DEPTH:
            raise too_deep(f"{path}[{level[0]}]", "a node")
        level = [child for node in level for child in children[node]]
        order += level
    if len(order) < len(children):
        raise _cycle(children, set(order), path)
    return order, depths


def _cycle(children: list[list[int]], reached: set[int], path: str) -> InvalidFieldError:
    """The error of a cycle: each node that is not reached has a parent that is not, so going up ends in a cycle."""
    parents = {child: node for node, own in enumerate(children) for child in own}
    node = min(set(range(len(children))) - reached)
    seen: set[int] = set()
    while node not in seen:
        seen.add(node)
        node = parents[node]
    index = children[parents[node]].index(node)
    return InvalidFieldError(
        f"{path}[{parents[node]}].children[{index}]", f"{node}, an ancestor", "a tree has no cycle"
    )
