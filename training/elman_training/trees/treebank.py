"""Treebanks: trees with a label at every node, one s-expression a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elman_training.corpus_files import Note, no_note, read_utf8
from elman_training.training_error import TrainingError

# Spaces and tabs separate pieces; a no-break space may be part of a word.
_PIECE = re.compile(r"[()]|[^() \t]+")


@dataclass(frozen=True)
class LabelledTree:
    """A tree as lists by node. Children come before their parents, in their order; the last node is the root.

    Attributes:
        labels: the label of each node.
        words: the word of each node; None for a node that has children.
        children: the indices of each node's children, the first child first; empty for a node that has a word.
    """

    labels: tuple[str, ...]
    words: tuple[str | None, ...]
    children: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Treebank:
    """A corpus of trees in its three parts."""

    training: list[LabelledTree]
    validation: list[LabelledTree]
    test: list[LabelledTree]


class TreeSyntaxError(ValueError):
    """A text is not a tree.

    Attributes:
        column: the column of the error, from 1.
    """

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


@dataclass
class _Node:
    """A bracket that is still open."""

    column: int
    label: str | None
    word: str | None
    children: list[int]


class _TreeParser:
    """Builds one tree from its pieces. It does not recurse, so a tree may have any depth."""

    def __init__(self) -> None:
        self._labels: list[str] = []
        self._words: list[str | None] = []
        self._children: list[tuple[int, ...]] = []
        self._path: list[_Node] = []  # the open brackets, the outermost first

    def add(self, piece: str, column: int) -> None:
        if self._labels and not self._path:
            raise TreeSyntaxError(f"the tree has ended before {piece!r}", column)
        if piece == "(":
            self._open(column)
        elif not self._path:
            raise TreeSyntaxError(f"a tree begins with '(', not {piece!r}", column)
        elif piece == ")":
            self._close(column)
        else:
            self._name(piece, column)

    def _open(self, column: int) -> None:
        if self._path and self._path[-1].label is None:
            raise TreeSyntaxError("a bracket without a label has no children: '(label child child)'", column)
        if self._path and self._path[-1].word is not None:
            raise TreeSyntaxError("a bracket that has a word has no children: '(label word)'", column)
        self._path.append(_Node(column, None, None, []))

    def _close(self, column: int) -> None:
        node = self._path.pop()
        if node.label is None:
            raise TreeSyntaxError("a bracket has no label: '(label word)' or '(label child child)'", column)
        if node.word is None and not node.children:
            raise TreeSyntaxError("a bracket has no word and no children: '(label word)' is a leaf", column)
        self._labels.append(node.label)
        self._words.append(node.word)
        self._children.append(tuple(node.children))
        if self._path:
            self._path[-1].children.append(len(self._labels) - 1)

    def _name(self, piece: str, column: int) -> None:
        node = self._path[-1]
        if node.label is None:
            node.label = piece
        elif node.word is None and not node.children:
            node.word = piece
        else:
            raise TreeSyntaxError(f"{piece!r}: a bracket has a label and then one word or children", column)

    def tree(self) -> LabelledTree:
        if self._path:
            raise TreeSyntaxError("the bracket that opens here is not closed", self._path[-1].column)
        if not self._labels:
            raise TreeSyntaxError("there is no tree", 1)
        return LabelledTree(tuple(self._labels), tuple(self._words), tuple(self._children))


def parse_tree(text: str) -> LabelledTree:
    """Read one tree of any depth: "(label word)" is a leaf, "(label child child ...)" any other node.

    Raises:
        TreeSyntaxError: the text is not a tree.
    """
    parser = _TreeParser()
    for found in _PIECE.finditer(text):
        parser.add(found[0], found.start() + 1)
    return parser.tree()


def read_treebank(corpus: str, note: Note = no_note) -> Treebank:
    """Read the files train.txt, dev.txt and test.txt of a folder.

    Trees of train.txt that are also in dev.txt or test.txt are left out of training: the Stanford Sentiment Treebank is
    distributed with all of dev.txt in train.txt.

    Args:
        corpus: the folder.
        note: called with what was left out.

    Raises:
        TrainingError: a file is missing or holds no trees.
    """
    folder = Path(corpus)
    training, validation, test = (list(_read_trees(folder / f"{part}.txt")) for part in ("train", "dev", "test"))
    held_out = {*validation, *test}
    read = len(training)
    training = [tree for tree in training if tree not in held_out]
    if not training:
        raise TrainingError(f"{folder / 'train.txt'}: holds no tree that is not in dev.txt or test.txt, too")
    if len(training) < read:
        note(f"{folder / 'train.txt'}: left out: {read - len(training)} trees that are in dev.txt or test.txt, too")
    return Treebank(training, validation, test)


def _read_trees(path: Path) -> Iterator[LabelledTree]:
    try:
        text = read_utf8(path)
    except OSError as error:
        raise TrainingError(
            f"{path}: {error.strerror}; a treebank is a folder with train.txt, dev.txt and test.txt"
        ) from error
    empty = True
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield parse_tree(line.rstrip("\r"))
        except TreeSyntaxError as error:
            raise TrainingError(f"{path}: line {number}, column {error.column}: {error}") from error
        empty = False
    if empty:
        raise TrainingError(f"{path}: holds no tree")
