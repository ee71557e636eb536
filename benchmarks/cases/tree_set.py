"""The trees of the tree case: random binary parse trees of typical sentence lengths, identical in every process."""

from __future__ import annotations

import random
from dataclasses import dataclass

INNER = 1  # the token of a node without a word
VOCABULARY = 10_000
_SHORTEST, _LONGEST = 5, 40  # words
_MEAN, _SPREAD = 19, 9  # as in the Stanford Sentiment Treebank


@dataclass(frozen=True)
class BinaryTree:
    """A binary tree in post-order: children precede their parents; the last node is the root.

    Attributes:
        tokens: token id of each node.
        children: indices of each node's two children; None for a leaf.
    """

    tokens: list[int]
    children: list[tuple[int, int] | None]

    def expression(self) -> str:
        """Return the tree as an s-expression."""
        written: list[str] = []
        for token, children in zip(self.tokens, self.children, strict=True):
            if children is None:
                written.append(f"(2 {word(token)})")
            else:
                left, right = children
                written.append(f"(2 {written[left]} {written[right]})")
        return written[-1]


def word(token: int) -> str:
    """Return the word of a token."""
    return f"word{token}"


def make_trees(count: int) -> list[BinaryTree]:
    """Return `count` trees, the same at every call."""
    generator = random.Random(0)
    return [_make_tree(generator) for _ in range(count)]


def _make_tree(generator: random.Random) -> BinaryTree:
    words = min(max(round(generator.gauss(_MEAN, _SPREAD)), _SHORTEST), _LONGEST)
    tokens = [generator.randrange(INNER + 1, VOCABULARY) for _ in range(words)]
    children: list[tuple[int, int] | None] = [None] * words
    spans = list(range(words))  # adjacent spans are merged until one remains
    while len(spans) > 1:
        first = generator.randrange(len(spans) - 1)
        children.append((spans[first], spans[first + 1]))
        tokens.append(INNER)
        spans[first : first + 2] = [len(tokens) - 1]
    return BinaryTree(tokens, children)
