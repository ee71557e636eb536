"""From the trees of requests to the sequences that the scheduler runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elman_server.errors import InvalidFieldError
from elman_server.inference.input_forms import Input, NumberInput, TextInput, TreeInput
from elman_server.inference.model import ServedModel
from elman_server.inference.offload import LONG, offload
from elman_server.inference.trees.node_lists import read_node_list
from elman_server.inference.trees.nodes import MAX_NODES, NO_WORD, Nodes, too_many_nodes
from elman_server.inference.trees.s_expressions import EXAMPLE, parse_s_expressions
from elman_server.scheduling import Receiver, Tree

_CHARACTERS_PER_NODE = 8  # of an s-expression, about
_LONG_TREE = LONG // 4  # nodes
_LONG_BATCH = 4 * LONG  # characters of a batch of s-expressions, most of which have no mistake to look for
_NEEDED = ("none", "a tree is needed", f"Give {EXAMPLE}")


async def read_tree(given: Input | None, model: ServedModel, receiver: Receiver, *, every_node: bool) -> Tree:
    """Return the sequence of the tree of a request.

    Args:
        given: the tree.
        model: what reads it.
        receiver: where the events of the sequence go.
        every_node: whether every node is to be labelled, or the root.

    Raises:
        InvalidFieldError: it is no tree, or none that the model reads.
    """
    if given is None:
        raise InvalidFieldError("tree", *_NEEDED)
    if not isinstance(given, TreeInput):
        got = "text" if isinstance(given, TextInput) else "tensor" if isinstance(given, NumberInput) else "tokens"
        raise InvalidFieldError(given.field, got, f"{model.name!r} reads trees", "Give a tree")
    length = given.node_count + len(given.s_expression or "") // _CHARACTERS_PER_NODE
    return await offload(length, lambda: _read(given, model, receiver, every_node), _LONG_TREE)


def read_short_trees(
    inputs: Sequence[Input | None], model: ServedModel, receivers: Sequence[Receiver], every_node: Sequence[bool]
) -> list[Tree] | None:
    """Return the sequences of the trees of a batch of requests; None if any of them is no s-expression, or they are so
    long that parsing them would hold up other calls.

    Raises:
        InvalidFieldError: one of them is no tree, or none that the model reads.
    """
    texts = [given.s_expression for given in inputs if isinstance(given, TreeInput) and given.s_expression]
    if len(texts) < len(inputs) or sum(map(len, texts)) >= _LONG_BATCH:
        return None
    nodes = parse_s_expressions(texts, "tree.s_expression", model.bracket)
    return _trees(nodes, model, receivers, every_node)


def _read(given: TreeInput, model: ServedModel, receiver: Receiver, every_node: bool) -> Tree:
    if given.nodes is not None:
        if given.node_count > MAX_NODES:
            raise too_many_nodes(f"{given.field}.nodes", given.node_count)
        nodes = read_node_list(given.nodes(), f"{given.field}.nodes", model)
    elif given.s_expression is not None:
        nodes = parse_s_expressions([given.s_expression], f"{given.field}.s_expression", model.bracket)
    else:
        raise InvalidFieldError(given.field, *_NEEDED)
    return _trees(nodes, model, [receiver], [every_node])[0]


def _trees(nodes: Nodes, model: ServedModel, receivers: Sequence[Receiver], every_node: Sequence[bool]) -> list[Tree]:
    """Return a sequence for each receiver."""
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


def _check_children(nodes: Nodes, model: ServedModel) -> None:
    """Refuse leaves without a word, and nodes with another number of children than the model has."""
    counts, expected = nodes.child_counts, model.bundle.spec.step.tree.child_count
    if np.count_nonzero(counts + nodes.tokens == NO_WORD):  # With a word or children the sum is larger.
        bare = (counts == 0) & (nodes.tokens == NO_WORD)
        field, node = nodes.locate(int(nodes.order[bare].min()))
        got = "neither a word nor children" + (f" in {node}" if node else "")
        raise InvalidFieldError(field, got, "a leaf has a word")
    if expected and np.count_nonzero(counts * (counts - expected)):
        wrong = (counts != 0) & (counts != expected)
        place = int(nodes.order[wrong].min())
        count = int(counts[nodes.order == place][0])
        field, node = nodes.locate(place)
        rule = f"a node of {model.name!r} has {expected} or none"
        if node:
            raise InvalidFieldError(field, f"{count} children in {node}", rule)
        raise InvalidFieldError(f"{field}.children", f"{count} children", rule)
