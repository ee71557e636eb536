"""Trees as the scheduler gets them."""

from __future__ import annotations

import numpy as np

from elman_server.scheduling import Tree
from tests.support.scheduling import Inbox
from tests.support.trees import RandomTree


def order_of(tree: RandomTree) -> tuple[list[int], list[int]]:
    """Return all nodes in breadth-first order, and their depths."""
    order, depths = [tree.root], [0]
    for node in order:
        depths += [depths[order.index(node)] + 1] * len(tree.children[node])
        order += tree.children[node]
    return order, depths


def tree_sequence(tree: RandomTree, *, every_node: bool = False) -> Tree:
    """Return the sequence of a tree, which reports its root, or every node."""
    order, depths = order_of(tree)
    return Tree(
        np.array([tree.tokens[node] for node in order]),
        Inbox(),
        depths=np.array(depths),
        child_counts=np.array([len(tree.children[node]) for node in order]),
        order=np.array(order) if every_node else None,
    )
