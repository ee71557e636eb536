"""The task on trees: a label for every node, the root's above all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from elman_bundle import INNER, SymbolVocabulary
from elman_training.cells import State
from elman_training.config import TreeConfig
from elman_training.errors import TrainingError
from elman_training.task import Tally, Task, Validation
from elman_training.tree_batches import EncodedTree, TreeBatch, encode_tree, make_batch
from elman_training.tree_corpus import LabelledTree, Treebank
from elman_training.tree_networks import TREE_CELLS

_INNER_ID = 1  # Behind the unknown token.
_BATCH = 64  # trees, where nothing is learnt


class Labeller(Protocol):
    """Whatever gives logits for the nodes of a batch: a network, or a graph that was made of it."""

    def __call__(self, batch: TreeBatch) -> Tensor:
        """The logits at every node, [N, labels]."""
        ...


class TreeTask(Task):
    """Every node is labelled, and every node's label is learnt: gradients go back through the structure of the tree
    (Goller and Küchler 1996). What counts in the end is the root, which stands for the whole sentence: validation
    measures roots alone, and the weights that label most of them rightly are kept."""

    unit = "tree"
    labels: tuple[str, ...]

    def __init__(self, config: TreeConfig, treebank: Treebank) -> None:
        self._config = config
        self._child_count = TREE_CELLS[config.cell].child_count
        self.vocabulary = SymbolVocabulary.from_texts(
            (" ".join(word for word in tree.words if word is not None) for tree in treebank.training),
            config.vocabulary_size,
            minimum_count=config.minimum_count,
            lower_case=config.lower_case,
            reserved=(INNER,),
        )
        self.vocabularies = {"": self.vocabulary}
        self._symbols = tuple(sorted({label for tree in treebank.training for label in tree.labels}))
        self.labels = config.label_names or self._symbols
        if len(self.labels) != len(self._symbols):
            raise TrainingError(
                f"{config.corpus}: its labels are {', '.join(self._symbols)}, but label_names has {len(self.labels)}"
            )
        self._training = self._encode(treebank.training, "train.txt")
        self._validation = self._encode(treebank.validation, "dev.txt")[: config.validation_limit]
        self._test = self._encode(treebank.test, "test.txt")
        self._sizes = np.array([len(tree.tokens) for tree in self._training])

    def _encode(self, trees: Sequence[LabelledTree], file: str) -> list[EncodedTree]:
        for number, tree in enumerate(trees, start=1):
            where = f"{self._config.corpus}: {file}, tree {number}"
            for label in tree.labels:
                if label not in self._symbols:
                    raise TrainingError(f"{where}: the label {label!r} does not occur in train.txt")
            for children in tree.children:
                if self._child_count and len(children) not in (0, self._child_count):
                    raise TrainingError(
                        f"{where}: a node has {len(children)} children, but with --cell {self._config.cell} it has "
                        f"{self._child_count} or none; child-sum takes any number"
                    )
        return [encode_tree(tree, self.vocabulary, _INNER_ID, self._symbols) for tree in trees]

    def data(self) -> Iterable[NDArray[Any]]:
        for tree in self._training:
            yield from (tree.tokens, tree.labels, tree.children)

    def loss(self, network: Labeller, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        batch = make_batch([self._training[index] for index in self._chosen(step)], self._child_count)
        # Every node counts the same: roots that count for more are not labelled better.
        return functional.cross_entropy(network(batch).float(), batch.labels), {}, len(batch.tokens)

    def _chosen(self, step: int) -> NDArray[np.int64]:
        """The trees of a batch: each occurs once an epoch."""
        size = min(self._config.lanes, len(self._training))
        epoch, within = divmod(step, len(self._training) // size)
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self._training))
        return order[within * size : (within + 1) * size]

    def validate(self, network: Labeller, *, lanes: int) -> Validation:
        tally = Tally()
        for batch, logits in self._labelled(network, self._validation):
            tally.add(logits[batch.roots], batch.labels[batch.roots])
        validation = tally.validation()
        assert validation.accuracy is not None
        return replace(validation, criterion=1 - validation.accuracy)

    def _labelled(self, network: Labeller, trees: Sequence[EncodedTree]) -> Iterable[tuple[TreeBatch, Tensor]]:
        for start in range(0, len(trees), _BATCH):
            batch = make_batch(trees[start : start + _BATCH], self._child_count)
            yield batch, network(batch)

    def test(self, network: Labeller, progress: Callable[[str, float], None]) -> dict[str, float]:
        """The shares of the test trees' roots, and of all their nodes, that are labelled rightly; and, where the labels
        are an odd number of grades with a neutral one in the middle, of the roots that are not neutral and are held
        to be on the right side of it."""
        nodes, roots, sides = _Share(), _Share(), _Share()
        middle = len(self.labels) // 2
        for index, (batch, logits) in enumerate(self._labelled(network, self._test)):
            progress("testing", index * _BATCH / len(self._test))
            nodes.add(logits.argmax(1) == batch.labels)
            at_roots, wanted = logits[batch.roots], batch.labels[batch.roots]
            roots.add(at_roots.argmax(1) == wanted)
            probabilities = at_roots.softmax(1)
            positive = probabilities[:, middle + 1 :].sum(1) > probabilities[:, :middle].sum(1)
            sided = wanted != middle
            sides.add(positive[sided] == (wanted[sided] > middle))
        measured = {"test_root_accuracy": roots.value, "test_node_accuracy": nodes.value}
        if _are_grades(self._symbols) and sides.total:
            measured["test_root_accuracy_binary"] = sides.value
        return measured


class _Share:
    def __init__(self) -> None:
        self.total = 0
        self._right = 0

    def add(self, right: Tensor) -> None:
        self.total += len(right)
        self._right += int(right.sum())

    @property
    def value(self) -> float:
        return self._right / self.total


def _are_grades(symbols: Sequence[str]) -> bool:
    """Whether labels are the numbers from 0 on, as many as have a middle."""
    return list(symbols) == [str(grade) for grade in range(len(symbols))] and len(symbols) % 2 == 1 and len(symbols) > 1
