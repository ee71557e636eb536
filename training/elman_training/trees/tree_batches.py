"""Many trees as one batch that is computed level by level.

The first level holds the leaves of all trees. Every other level holds the nodes whose children are all in lower levels,
one of them in the level just below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elman_bundle import InputVocabulary
from elman_training.task import Ids
from elman_training.trees.treebank import LabelledTree

MISSING = -1


@dataclass(frozen=True)
class EncodedTree:
    """A tree as arrays, its nodes in the order of LabelledTree.

    Attributes:
        tokens: the token that each node reads, [N].
        labels: [N].
        children: the indices of each node's children, [N, C], MISSING after the last one; C is the largest number of
            children of a node.
        heights: the length of the longest path from each node to a leaf, [N].
    """

    tokens: Ids
    labels: Ids
    children: Ids
    heights: Ids

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        return self.tokens, self.labels, self.children


def encode_tree(tree: LabelledTree, vocabulary: InputVocabulary, inner_id: int, labels: Sequence[str]) -> EncodedTree:
    """Convert a tree to arrays.

    Args:
        tree: the tree.
        vocabulary: the vocabulary of its words. A word that is not exactly one token is unknown.
        inner_id: the token that nodes without a word read.
        labels: all labels in the order of their ids.
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
    """B trees with N nodes in all, ordered by level, the leaves first.

    Attributes:
        tokens: [N].
        labels: [N].
        levels: for each level the positions of its nodes' children plus 1, [n, C]; 0 stands for a missing child.
        positions: the position of each node in the batch, [N], with the trees one after the other in their own order.
        roots: the position of each tree's root, [B].
    """

    tokens: Tensor
    labels: Tensor
    levels: tuple[Tensor, ...]
    positions: Tensor
    roots: Tensor


def make_batch(trees: Sequence[EncodedTree], child_count: int) -> TreeBatch:
    """Make a batch of trees.

    Args:
        trees: the trees.
        child_count: C at every level; 0 for the largest number of children that a node of the level has.
    """
    sizes = [len(tree.tokens) for tree in trees]
    ends = np.cumsum(sizes)
    heights = np.concatenate([tree.heights for tree in trees])
    order = np.argsort(heights, kind="stable")
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order))
    widest = max(child_count, *(tree.children.shape[1] for tree in trees))
    children = np.zeros((len(order), widest), np.int64)
    for tree, end, size in zip(trees, ends, sizes, strict=True):
        start = end - size
        within = np.where(tree.children == MISSING, MISSING, positions[np.maximum(tree.children, 0) + start])
        children[start:end, : tree.children.shape[1]] = within + 1
    by_level = np.split(children[order], np.cumsum(np.bincount(heights))[:-1])
    return TreeBatch(
        tokens=torch.from_numpy(np.concatenate([tree.tokens for tree in trees])[order]),
        labels=torch.from_numpy(np.concatenate([tree.labels for tree in trees])[order]),
        levels=tuple(torch.from_numpy(level[:, : child_count or (level != 0).sum(axis=1).max()]) for level in by_level),
        positions=torch.from_numpy(positions),
        roots=torch.from_numpy(positions[ends - 1]),
    )
