"""From the tree of a request to what scheduling runs. Every complaint names the place, what is wrong there and what
would be right; nothing here calls itself, so that no tree is too deep to be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle import EncodingError
from elman import v1
from server.decoding.errors import shortened
from server.rpc.errors import FieldError, InputTooLongError
from server.rpc.lengthy import LONG, by_length
from server.rpc.mailbox import Mailbox
from server.rpc.models import ServedModel
from server.scheduling import Tree

MOST_NODES = 10_000
DEEPEST = 1_000  # nodes on one way from the root

_EXPRESSION = "tree.s_expression"
_NODES = "tree.nodes.nodes"
# White space is what stands between pieces; a no-break space may be a part of a word.
_PIECE = re.compile(r"[()]|[^() \t\r\n]+")
_CHARACTERS_PER_NODE = 8  # of an s-expression, about


@dataclass(frozen=True)
class _Nodes:
    """The nodes of a tree in the order of the answer, which is that of the list or of the opening brackets.

    Attributes:
        words: what stands at each: a word, a token's id, or nothing.
        child_counts: how many children each has.
        order: their places, those nearer to the root first; the children of one before those of the next.
        depths: in that order, how far each is from the root.
        where: where a node stands in the request, given its place: the field, and what is to be said of it besides.
    """

    words: Sequence[str | int | None]
    child_counts: NDArray[np.int64]
    order: NDArray[np.int64]
    depths: NDArray[np.int64]
    where: Callable[[int], tuple[str, str]]


async def requested_tree(request: v1.ClassifyRequest, model: ServedModel) -> Tree:
    """The tree that is to be labelled.

    Raises:
        FieldError: it is no tree, or none that the model takes.
    """
    chosen = request.WhichOneof("input")
    if chosen is None:
        raise FieldError("tree", _WANTED)
    if chosen != "tree":
        raise FieldError(chosen, f"is given, but {model.name!r} reads trees: give a tree")
    tree = request.tree
    length = len(tree.nodes.nodes) + len(tree.s_expression) // _CHARACTERS_PER_NODE
    return await by_length(length, lambda: _tree(tree, model, every_node=request.every_node), LONG // 4)


_WANTED = "is needed: give an s_expression, such as '(2 (2 It) (2 works))', or nodes"


def _tree(tree: v1.Tree, model: ServedModel, *, every_node: bool) -> Tree:
    form = tree.WhichOneof("form")
    if form is None:
        raise FieldError("tree", _WANTED)
    nodes = _parsed(tree.s_expression) if form == "s_expression" else _listed(tree.nodes.nodes)
    _check_children(nodes, model)
    tokens = np.array(_tokens(nodes, model), np.int64)
    return Tree(
        tokens[nodes.order],
        Mailbox(),
        depths=nodes.depths,
        child_counts=nodes.child_counts[nodes.order],
        order=nodes.order if every_node else None,
    )


def _parsed(text: str) -> _Nodes:
    """The nodes of an s-expression.

    Raises:
        FieldError: it is none.
    """
    if text.count("(") > MOST_NODES:
        raise _too_many(_EXPRESSION, text.count("("))
    words: list[str | None] = []
    parents: list[int] = []
    depths: list[int] = []
    path: list[int] = []
    last = ")"  # What came last: a bracket, or "label" or "word".
    # One after the other, so that nothing behind the first mistake is looked at.
    for found in _PIECE.finditer(text):
        piece = found.group()
        if not path and (words or piece != "("):
            complaint = "follows the end of the tree" if words else "stands where a tree begins with '('"
            raise _misplaced(found, complaint)
        if last == "(":
            if piece in "()":
                raise _misplaced(found, "stands where a label is needed: '(label word)' or '(label child child)'")
            last = "label"
        elif piece == "(":
            parents.append(path[-1] if path else -1)
            depths.append(len(path))
            path.append(len(words))
            words.append(None)
            last = "("
            if len(path) > DEEPEST:
                raise _too_deep(_EXPRESSION, f"the bracket at character {found.start()}")
        elif piece == ")":
            path.pop()
            last = ")"
        elif last == "label":
            words[path[-1]] = piece
            last = "word"
        else:
            complaint = "stands where a bracket or ')' is needed: a node has one word, before its children"
            raise _misplaced(found, complaint)
    if not words:
        raise FieldError(_EXPRESSION, f"is empty: {_WANTED.removeprefix('is needed: ')}")
    if path:
        place = _brackets(text)[path[-1]]
        raise FieldError(_EXPRESSION, f"the bracket at character {place} is not closed")
    by_depth = np.array(depths)
    order = np.argsort(by_depth, kind="stable")
    counts = np.bincount(np.array(parents[1:], np.int64), minlength=len(words)).astype(np.int64)

    def where(node: int) -> tuple[str, str]:
        return _EXPRESSION, f"the bracket at character {_brackets(text)[node]} "

    return _Nodes(words, counts, order, by_depth[order], where)


def _brackets(text: str) -> list[int]:
    """Where the brackets open."""
    return [place for place, character in enumerate(text) if character == "("]


def _misplaced(piece: re.Match[str], complaint: str) -> FieldError:
    return FieldError(_EXPRESSION, f"{shortened(piece.group())!r} at character {piece.start()} {complaint}")


def _too_many(field: str, count: int) -> FieldError:
    return InputTooLongError(field, f"has {count} nodes, but a tree may have {MOST_NODES}", limit=MOST_NODES)


def _too_deep(field: str, what: str) -> FieldError:
    message = f"{what} is node {DEEPEST + 1} on its way from the root, but there may be {DEEPEST}"
    return InputTooLongError(field, message, limit=DEEPEST)


def _listed(nodes: Sequence[v1.TreeNode]) -> _Nodes:
    """The nodes of a list.

    Raises:
        FieldError: they are no tree.
    """
    count = len(nodes)
    if not count:
        raise FieldError("tree.nodes", "is empty: a tree has one node or more")
    if count > MOST_NODES:
        raise _too_many("tree.nodes", count)
    children = [list(node.children) for node in nodes]
    order, depths = _by_depth(children, _root(children))
    words = [_content(node) for node in nodes]
    counts = np.array([len(own) for own in children], np.int64)
    return _Nodes(words, counts, np.array(order), np.array(depths), lambda node: (f"{_NODES}[{node}]", ""))


def _content(node: v1.TreeNode) -> str | int | None:
    chosen = node.WhichOneof("content")
    return None if chosen is None else node.word if chosen == "word" else node.token_id


def _root(children: list[list[int]]) -> int:
    """The only node without a parent, where every other node has one.

    Raises:
        FieldError: there is no such node, or one has two parents.
    """
    count = len(children)
    parents: dict[int, int] = {}
    for node, own in enumerate(children):
        for index, child in enumerate(own):
            field = f"{_NODES}[{node}].children[{index}]"
            if not 0 <= child < count:
                raise FieldError(field, f"is {child}, but the nodes are 0 to {count - 1}")
            if child in parents:
                other = "is named twice" if parents[child] == node else f"is a child of node {parents[child]} already"
                raise FieldError(field, f"is {child}, which {other}: a node has one parent")
            parents[child] = node
    roots = [node for node in range(count) if node not in parents]
    if not roots:
        raise FieldError("tree.nodes", "has no root: every node is the child of another, so they form a cycle")
    if len(roots) > 1:
        raise FieldError(
            f"{_NODES}[{roots[1]}]", f"is no child of any node, and neither is node {roots[0]}: a tree has one root"
        )
    return roots[0]


def _by_depth(children: list[list[int]], root: int) -> tuple[list[int], list[int]]:
    """All nodes, those nearer to the root first, and how far each is from it. Each has one parent but the root.

    Raises:
        FieldError: some are not reached from the root, or are too far from it.
    """
    order, depths = [root], [0]
    level = [root]
    while level:
        if len(order) > len(depths):
            depths += [depths[-1] + 1] * len(level)
        if depths[-1] >= DEEPEST:
            raise _too_deep(f"{_NODES}[{level[0]}]", "the node")
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
        raise FieldError(
            f"{_NODES}[{parents[node]}].children[{index}]", f"is {node}, from which the way leads back: that is a cycle"
        )
    return order, depths


def _check_children(nodes: _Nodes, model: ServedModel) -> None:
    """Refuse nodes with another number of children than the model has."""
    wanted = model.bundle.spec.step.tree.child_count
    if not wanted:
        return
    wrong = np.flatnonzero((nodes.child_counts != 0) & (nodes.child_counts != wanted))
    if wrong.size:
        node = int(wrong[0])
        field, what = nodes.where(node)
        field = field if what else f"{field}.children"
        raise FieldError(
            field, f"{what}has {nodes.child_counts[node]} children, but a node of {model.name!r} has {wanted} or none"
        )


def _tokens(nodes: _Nodes, model: ServedModel) -> list[int]:
    """What every node reads."""
    inner = model.bundle.spec.step.tree.inner_token_id
    size, token_of = model.vocabulary.size, model.token_of
    tokens: list[int] = []
    for node, (word, count) in enumerate(zip(nodes.words, nodes.child_counts.tolist(), strict=True)):
        if word is None:
            if not count:
                field, what = nodes.where(node)
                raise FieldError(field, f"{what}has neither a word nor children: a leaf has a word")
            tokens.append(inner)
        elif isinstance(word, int):
            if not 0 <= word < size:
                field, _ = nodes.where(node)
                raise FieldError(f"{field}.token_id", f"is {word}, but the ids of {model.name!r} are 0 to {size - 1}")
            tokens.append(word)
        else:
            try:
                tokens.append(token_of(word))
            except EncodingError as error:
                field, what = nodes.where(node)
                raise FieldError(field if what else f"{field}.word", f"{what}{_said(what, word)}{error}") from error
    return tokens


def _said(what: str, word: str) -> str:
    return f"has the word {shortened(word)!r}: " if what else ""
