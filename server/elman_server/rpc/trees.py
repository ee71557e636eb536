"""From the tree of a request to what scheduling runs. Every complaint names the place, what is wrong there and what
would be right; nothing here calls itself, so that no tree is too deep to be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elman_bundle import EncodingError
from elman_protos import v1
from elman_server.errors import InvalidFieldError, shortened
from elman_server.rpc.lengthy import LONG, by_length
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import ServedModel
from elman_server.rpc.nodes import DEEPEST, MOST_NODES, NO_WORD, Nodes, too_deep, too_many
from elman_server.rpc.s_expressions import EXAMPLE, parsed
from elman_server.scheduling import Receiver, Tree

_NODES = "tree.nodes.nodes"
_WANTED = ("none", "a tree is needed", f"Give {EXAMPLE}")
_CHARACTERS_PER_NODE = 8  # of an s-expression, about
_LONG = LONG // 4  # nodes
_LONG_TOGETHER = 4 * LONG  # characters of several s-expressions, of which few have mistakes that are looked for


async def requested_tree(request: v1.ClassifyRequest, model: ServedModel) -> Tree:
    """The tree that is to be labelled.

    Raises:
        InvalidFieldError: it is no tree, or none that the model takes.
    """
    return await by_length(_length(request.tree), lambda: _requested(request, model), _LONG)


def short_trees(
    requests: Sequence[v1.ClassifyRequest], model: ServedModel, receivers: Sequence[Receiver]
) -> list[Tree] | None:
    """Those of several requests at once, all of them s-expressions; None: there are others among them, or so long ones
    that the other callers would wait for them.

    Raises:
        InvalidFieldError: one of them is no tree, or none that the model takes.
    """
    texts = [request.tree.s_expression for request in requests]
    if not all(texts) or sum(map(len, texts)) >= _LONG_TOGETHER:
        return None
    return _trees(parsed(texts, model.bracket), model, receivers, [request.every_node for request in requests])


def _length(tree: v1.Tree) -> int:
    return len(tree.nodes.nodes) + len(tree.s_expression) // _CHARACTERS_PER_NODE


def _requested(request: v1.ClassifyRequest, model: ServedModel) -> Tree:
    chosen = request.WhichOneof("input")
    if chosen is None:
        raise InvalidFieldError("tree", *_WANTED)
    if chosen != "tree":
        raise InvalidFieldError(chosen, chosen, f"{model.name!r} reads trees", "Give a tree")
    form = request.tree.WhichOneof("form")
    if form is None:
        raise InvalidFieldError("tree", *_WANTED)
    listed = form == "nodes"
    tree = request.tree
    nodes = _listed(tree.nodes.nodes, model) if listed else parsed([tree.s_expression], model.bracket)
    return _trees(nodes, model, [Mailbox()], [request.every_node])[0]


def _trees(nodes: Nodes, model: ServedModel, receivers: Sequence[Receiver], every_node: Sequence[bool]) -> list[Tree]:
    """What scheduling runs, for each receiver one."""
    _check_children(nodes, model)
    tokens = np.where(nodes.tokens == NO_WORD, model.bundle.spec.step.tree.inner_token_id, nodes.tokens)
    trees: list[Tree] = []
    start = 0
    for size, receiver, every in zip(nodes.sizes, receivers, every_node, strict=True):
        part = slice(start, start + size)
        trees.append(
            Tree(
                tokens[part],
                receiver,
                depths=nodes.depths[part],
                child_counts=nodes.child_counts[part],
                order=nodes.order[part] - start if every else None,
            )
        )
        start += size
    return trees


def _listed(nodes: Sequence[v1.TreeNode], model: ServedModel) -> Nodes:
    """The nodes of a list.

    Raises:
        InvalidFieldError: they are no tree.
    """
    count = len(nodes)
    if not count:
        raise InvalidFieldError("tree.nodes", "no nodes", "a tree has one node or more")
    if count > MOST_NODES:
        raise too_many("tree.nodes", count)
    children = [list(node.children) for node in nodes]
    by_depth, depths = _by_depth(children, _root(children))
    order = np.array(by_depth)
    tokens = np.array([_token(node, f"{_NODES}[{place}]", model) for place, node in enumerate(nodes)])
    counts = np.array([len(own) for own in children])
    return Nodes([count], tokens[order], counts[order], order, np.array(depths), lambda node: (f"{_NODES}[{node}]", ""))


def _token(node: v1.TreeNode, field: str, model: ServedModel) -> int:
    """What a node reads."""
    chosen = node.WhichOneof("content")
    if chosen is None:
        return NO_WORD
    if chosen == "word":
        try:
            return model.token_of(node.word)
        except EncodingError as error:
            raise InvalidFieldError(f"{field}.word", repr(shortened(node.word)), str(error)) from error
    size = model.vocabulary.size
    if not 0 <= node.token_id < size:
        rule = f"the ids of {model.name!r} are 0 to {size - 1}"
        raise InvalidFieldError(f"{field}.token_id", node.token_id, rule)
    return node.token_id


def _root(children: list[list[int]]) -> int:
    """The only node without a parent, where every other node has one.

    Raises:
        InvalidFieldError: there is no such node, or one has two parents.
    """
    count = len(children)
    parents: dict[int, int] = {}
    for node, own in enumerate(children):
        for index, child in enumerate(own):
            field = f"{_NODES}[{node}].children[{index}]"
            if not 0 <= child < count:
                raise InvalidFieldError(field, child, f"the nodes are 0 to {count - 1}")
            if child in parents:
                got = f"node {child} again" if parents[child] == node else f"{child}, a child of node {parents[child]}"
                raise InvalidFieldError(field, got, "a node has one parent")
            parents[child] = node
    roots = [node for node in range(count) if node not in parents]
    if not roots:
        raise InvalidFieldError("tree.nodes", "no root", "every node is the child of another, so they form a cycle")
    if len(roots) > 1:
        raise InvalidFieldError(
            f"{_NODES}[{roots[1]}]", f"a second root besides node {roots[0]}", "a tree has one root"
        )
    return roots[0]


def _by_depth(children: list[list[int]], root: int) -> tuple[list[int], list[int]]:
    """All nodes, those nearer to the root first, and how far each is from it. Each has one parent but the root.

    Raises:
        InvalidFieldError: some are not reached from the root, or are too far from it.
    """
    order, depths = [root], [0]
    level = [root]
    while level:
        if len(order) > len(depths):
            depths += [depths[-1] + 1] * len(level)
        if depths[-1] >= DEEPEST:
            raise too_deep(f"{_NODES}[{level[0]}]", "a node")
        level = [child for node in level for child in children[node]]
        order += level
    if len(order) < len(children):
        # Each of the others has a parent among them: so there is a cycle, into which one comes by going up.
        parents = {child: node for node, own in enumerate(children) for child in own}
        node = min(set(range(len(children))) - set(order))
        seen: set[int] = set()
        while node not in seen:
            seen.add(node)
            node = parents[node]
        index = children[parents[node]].index(node)
        raise InvalidFieldError(
            f"{_NODES}[{parents[node]}].children[{index}]", f"{node}, an ancestor", "a tree has no cycle"
        )
    return order, depths


def _check_children(nodes: Nodes, model: ServedModel) -> None:
    """Refuse leaves without a word, and nodes with another number of children than the model has."""
    counts, wanted = nodes.child_counts, model.bundle.spec.step.tree.child_count
    if np.count_nonzero(counts + nodes.tokens == NO_WORD):  # what has a word, or children, is more
        bare = (counts == 0) & (nodes.tokens == NO_WORD)
        field, what = nodes.where(int(nodes.order[bare].min()))
        got = f"neither a word nor children{what and f' in {what}'}"
        raise InvalidFieldError(field, got, "a leaf has a word")
    if wanted and np.count_nonzero(counts * (counts - wanted)):
        wrong = (counts != 0) & (counts != wanted)
        node = int(nodes.order[wrong].min())
        count = int(counts[nodes.order == node][0])
        field, what = nodes.where(node)
        field = field if what else f"{field}.children"
        got = f"{count} children{what and f' in {what}'}"
        raise InvalidFieldError(field, got, f"a node of {model.name!r} has {wanted} or none")
