"""Many trees as one batch, to be computed level by level.

A level holds all nodes of all trees of the batch whose children have been computed by then and which could not be
computed sooner: first the leaves, then the nodes with nothing but leaves below them, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elman_bundle import InputVocabulary
from elman_training.lanes import Ids
from elman_training.tree_corpus import LabelledTree

MISSING = -1


@dataclass(frozen=True)
class EncodedTree:
    """A tree in numbers, its nodes in the order of LabelledTree.

    Attributes:
        tokens: [N], what each node reads.
        labels: [N].
        children: [N, C] places of children, MISSING behind the last one; C is the number of the node with the most.
        heights: [N], the longest way down from each node.
    """

    tokens: Ids
    labels: Ids
    children: Ids
    heights: Ids

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        return self.tokens, self.labels, self.children


def encode_tree(tree: LabelledTree, vocabulary: InputVocabulary, inner_id: int, labels: Sequence[str]) -> EncodedTree:
    """A tree in numbers.

    Args:
        tree: what is to be encoded.
        vocabulary: of its words. A word that it does not know as one token is unknown.
        inner_id: what nodes without a word read.
        labels: in the order of their ids, all that the tree has among them.
    """
    assert vocabulary.unknown_id is not None
    ids = {label: index for index, label in enumerate(labels)}
    tokens = np.full(len(tree.words), inner_id)
    widest = max(map(len, tree.children))
    children = np.full((len(tree.words), widest), MISSING)
    heights = np.zeros(len(tree.words), np.int64)
    for node, (word, below) in enumerate(zip(tree.words, tree.children, strict=True)):
        if word is not None:
            encoded = vocabulary.encode(word)
            tokens[node] = encoded[0] if len(encoded) == 1 else vocabulary.unknown_id
        children[node, : len(below)] = below
        heights[node] = 1 + max((heights[child] for child in below), default=-1)
    return EncodedTree(tokens, np.array([ids[label] for label in tree.labels]), children, heights)


@dataclass(frozen=True)
class TreeBatch:
    """Trees side by side: B of them, N nodes in all, those of a level together and the leaves first.

    Attributes:
        tokens: [N].
        labels: [N].
        levels: for each level the places of its nodes' children, [n, C], with one added: 0 stands for no child.
        places: [N], where each node is, the trees one behind the other in the order of their own nodes.
        roots: [B], where the root of each tree is.
    """

    tokens: Tensor
    labels: Tensor
    levels: tuple[Tensor, ...]
    places: Tensor
    roots: Tensor


def make_batch(trees: Sequence[EncodedTree], child_count: int) -> TreeBatch:
    """Put trees side by side.

    Args:
        trees: what is to be computed.
        child_count: C at every level; 0: as many as a node of the level has, at the leaves' level none.
    """
    sizes = [len(tree.tokens) for tree in trees]
    ends = np.cumsum(sizes)
    heights = np.concatenate([tree.heights for tree in trees])
    order = np.argsort(heights, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    widest = max(child_count, *(tree.children.shape[1] for tree in trees))
    children = np.zeros((len(order), widest), np.int64)
    for tree, end, size in zip(trees, ends, sizes, strict=True):
        start = end - size
        within = np.where(tree.children == MISSING, MISSING, places[np.maximum(tree.children, 0) + start])
        children[start:end, : tree.children.shape[1]] = within + 1
    by_level = np.split(children[order], np.cumsum(np.bincount(heights))[:-1])
    return TreeBatch(
        tokens=torch.from_numpy(np.concatenate([tree.tokens for tree in trees])[order]),
        labels=torch.from_numpy(np.concatenate([tree.labels for tree in trees])[order]),
        levels=tuple(torch.from_numpy(level[:, : child_count or (level != 0).sum(axis=1).max()]) for level in by_level),
        places=torch.from_numpy(places),
        roots=torch.from_numpy(places[ends - 1]),
    )
