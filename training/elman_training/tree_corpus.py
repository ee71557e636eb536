"""Treebanks: trees with a label at every node, one s-expression a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elman_training.errors import TrainingError

# White space is what stands between pieces in a line; a no-break space may be part of a word.
_PIECE = re.compile(r"[()]|[^() \t]+")


@dataclass(frozen=True)
class LabelledTree:
    """A tree as lists by node. Children stand before their parents, in their order; the last node is the root.

    Attributes:
        labels: of each node.
        words: of each node; None for one that has children.
        children: the places of each node's children, the first child first; none for one that has a word.
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
    """A text is no tree.

    Attributes:
        column: where, from 1.
    """

    def __init__(self, complaint: str, column: int) -> None:
        super().__init__(complaint)
        self.column = column


@dataclass
class _Open:
    """A bracket that has not been closed yet."""

    column: int
    label: str | None
    word: str | None
    children: list[int]


def parse_tree(text: str) -> LabelledTree:
    """Read one tree: "(label word)" is a leaf, "(label child child ...)" any other node.

    Trees are as deep as they like: nothing here calls itself.

    Raises:
        TreeSyntaxError: the text is no tree.
    """
    labels: list[str] = []
    words: list[str | None] = []
    children: list[tuple[int, ...]] = []
    path: list[_Open] = []
    for found in _PIECE.finditer(text):
        piece, column = found[0], found.start() + 1
        if labels and not path:
            raise TreeSyntaxError(f"the tree has ended before {piece!r}", column)
        if piece == "(":
            if path and path[-1].label is None:
                raise TreeSyntaxError("a bracket without a label has no children: '(label child child)'", column)
            if path and path[-1].word is not None:
                raise TreeSyntaxError("a bracket that has a word has no children: '(label word)'", column)
            path.append(_Open(column, None, None, []))
        elif not path:
            raise TreeSyntaxError(f"a tree begins with '(', not {piece!r}", column)
        elif piece == ")":
            node = path.pop()
            if node.label is None:
                raise TreeSyntaxError("a bracket has no label: '(label word)' or '(label child child)'", column)
            if node.word is None and not node.children:
                raise TreeSyntaxError("a bracket has no word and no children: '(label word)' is a leaf", column)
            labels.append(node.label)
            words.append(node.word)
            children.append(tuple(node.children))
            if path:
                path[-1].children.append(len(labels) - 1)
        elif path[-1].label is None:
            path[-1].label = piece
        elif path[-1].word is None and not path[-1].children:
            path[-1].word = piece
        else:
            raise TreeSyntaxError(f"{piece!r}: a bracket has a label and then one word or children", column)
    if path:
        raise TreeSyntaxError("the bracket that opens here is not closed", path[-1].column)
    if not labels:
        raise TreeSyntaxError("there is no tree", 1)
    return LabelledTree(tuple(labels), tuple(words), tuple(children))


def read_treebank(corpus: str) -> Treebank:
    """Read the files train.txt, dev.txt and test.txt of a folder. What stands in dev.txt or test.txt is left out of
    training where train.txt has it too, as that of the Stanford Sentiment Treebank is handed round with all of
    dev.txt in it.

    Raises:
        TrainingError: a file is missing or holds no trees.
    """
    folder = Path(corpus)
    training, validation, test = (list(_read_trees(folder / f"{part}.txt")) for part in ("train", "dev", "test"))
    held_out = {*validation, *test}
    training = [tree for tree in training if tree not in held_out]
    if not training:
        raise TrainingError(f"{folder / 'train.txt'}: holds no tree that is not in dev.txt or test.txt too")
    return Treebank(training, validation, test)


def _read_trees(path: Path) -> Iterator[LabelledTree]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TrainingError(
            f"{path}: {error.strerror}; a treebank is a folder with train.txt, dev.txt and test.txt"
        ) from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from error
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
