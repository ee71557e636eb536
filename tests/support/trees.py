"""Networks over trees with random weights, their bundles, and trees of random shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from elman_bundle import Bundle, SymbolVocabulary
from elman_export import Labels, Token, Tree, export_bundle
from elman_protos import v1
from elman_training.trees.tree_network import TreeNetwork
from tests.support.reference import open_graph

SENTIMENTS = ("0", "1", "2", "3", "4")
INNER = 1
HIDDEN = 12
WORDS = SymbolVocabulary(["�", "<inner>", *(f"w{index}" for index in range(38))], unknown_id=0)


class TreeLstm(TreeNetwork):
    """A Tree-LSTM with random weights.

    Args:
        children: 2 for the binary cell, 0 for the child-sum cell.
    """

    def __init__(self, children: int) -> None:
        torch.manual_seed(5 + children)
        super().__init__(
            cell="binary" if children else "child-sum",
            tokens=WORDS.size,
            outputs=len(SENTIMENTS),
            embedding=8,
            hidden=HIDDEN,
            dropout=0.0,
        )
        self.child_count = children


def write_trees(module: nn.Module, folder: Path, name: str, children: int, *, token: Token | None = None) -> None:
    """Write the bundle of a step over trees into a folder."""
    export_bundle(
        module,
        folder,
        name=name,
        inputs={"token": token or Token(WORDS)},
        outputs={"logits": Labels(SENTIMENTS)},
        tree=Tree(children=children, inner_id=INNER),
    )


@dataclass(frozen=True)
class RandomTree:
    """A tree.

    Attributes:
        tokens: token id of each node.
        children: indices of each node's children.
        root: index of the root.
    """

    tokens: list[int]
    children: list[list[int]]
    root: int


def random_tree(seed: int, children: int, size: int) -> RandomTree:
    """Return a tree of a random shape, with its nodes in a random order.

    Args:
        seed: random seed.
        children: 2: a binary tree with words only at its leaves; 0: any number of children, and words at all nodes.
        size: approximate number of nodes.
    """
    random = np.random.default_rng(seed)
    below: list[list[int]] = [[]]
    open_nodes = [0]
    while len(below) < size:
        place = int(random.integers(len(open_nodes)))
        parent = open_nodes.pop(place) if children else open_nodes[place]
        for _ in range(children or int(random.integers(1, 4))):
            below[parent].append(len(below))
            open_nodes.append(len(below))
            below.append([])
    places = random.permutation(len(below)).tolist()
    tokens = [INNER] * len(below)
    ordered: list[list[int]] = [[] for _ in below]
    for node, own in enumerate(below):
        ordered[places[node]] = [places[child] for child in own]
        if not own or (not children and random.random() < 0.7):
            tokens[places[node]] = int(random.integers(2, WORDS.size))
    return RandomTree(tokens, ordered, places[0])


def graph_scores(bundle: Bundle, tree: RandomTree) -> NDArray[np.float32]:
    """Return onnxruntime's output at every node, run one at a time with one slot per child and at least one slot."""
    session = open_graph(bundle.graph_path)
    spec = bundle.spec.step
    scores: dict[int, NDArray[np.float32]] = {}

    def state_of(node: int) -> list[NDArray[np.float32]]:
        below = [state_of(child) for child in tree.children[node]]
        places = spec.tree.child_count or max(1, len(below))
        feeds = {}
        for index, state in enumerate(spec.states):
            value = np.zeros((1, places, *state.shape), np.float32)
            for place, one in enumerate(below):
                value[0, place] = one[index][0]
            feeds[state.input_name] = value
        result, *after = session.run(
            ["logits", *(state.output_name for state in spec.states)],
            {"token": np.array([tree.tokens[node]]), **feeds},
        )
        scores[node] = result[0]
        return list(after)

    state_of(tree.root)
    return np.stack([scores[node] for node in range(len(tree.tokens))])


def probabilities(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities as the server computes them."""
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def as_nodes(tree: RandomTree) -> v1.Tree:
    """Return a tree as a message, with words at every other node and token ids at the others."""
    message = v1.Tree()
    for node, (token, children) in enumerate(zip(tree.tokens, tree.children, strict=True)):
        added = message.nodes.nodes.add(children=children)
        if token != INNER and node % 2:
            added.word = WORDS.tokens[token]
        elif token != INNER:
            added.token_id = token
    return message


def as_expression(tree: RandomTree) -> tuple[str, list[int]]:
    """Return a tree as an s-expression, and the indices of its nodes in the order of the brackets."""
    order: list[int] = []
    pieces: list[str] = []
    left: list[int | str] = [tree.root]
    while left:
        node = left.pop()
        if isinstance(node, str):
            pieces.append(node)
            continue
        order.append(node)
        word = "" if tree.tokens[node] == INNER else f" {WORDS.tokens[tree.tokens[node]]}"
        pieces.append(f"(x{word}")
        left.append(")")
        left += reversed(tree.children[node])
    return " ".join(pieces), order
