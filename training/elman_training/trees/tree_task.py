"""Labelling the nodes of trees, the root above all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from elman_bundle import INNER, SymbolVocabulary
from elman_training.cells.cell import State
from elman_training.config import TreeConfig
from elman_training.task import Progress, Tally, Task, Validation, count_labels
from elman_training.training_error import TrainingError
from elman_training.trees import tree_cell_class
from elman_training.trees.tree_batches import EncodedTree, TreeBatch, encode_tree, make_batch
from elman_training.trees.treebank import LabelledTree, Treebank

_INNER_ID = 1  # The unknown token has the id 0.
_EVALUATION_TREES = 64  # of a batch


class NodeLabeller(Protocol):
    """A model from trees to logits at every node: a network, or a graph exported from one."""

    def __call__(self, batch: TreeBatch) -> Tensor:
        """The logits at every node, [N, labels]."""
        ...


class TreeTask(Task):
    """The target is a label for every node; gradients flow through the structure of the tree (Goller and Küchler 1996).

    The root stands for the whole sentence: validation measures roots alone, and the weights with the best accuracy on
    them are kept.
    """

    unit = "tree"
    labels: tuple[str, ...]

    def __init__(self, config: TreeConfig, treebank: Treebank) -> None:
        self._config = config
        self._child_count = tree_cell_class(config.cell).child_count
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
        trees = (*treebank.training, *treebank.validation, *treebank.test)
        counts = count_labels(self._symbols, (label for tree in trees for label in tree.labels))
        self.label_counts = dict(zip(self.labels, counts.values(), strict=True))
        self._training = self._encode(treebank.training, "train.txt")
        self._validation = self._encode(treebank.validation, "dev.txt")[: config.validation_limit]
        self._test = self._encode(treebank.test, "test.txt")

    def _encode(self, trees: Sequence[LabelledTree], file: str) -> list[EncodedTree]:
        for number, tree in enumerate(trees, start=1):
            where = f"{self._config.corpus}: {file}, tree {number}"
            for label in tree.labels:
                if label not in self._symbols:
                    raise TrainingError(f"{where}: the label {label!r} does not occur in train.txt")
            for children in tree.children:
                if self._child_count and len(children) not in (0, self._child_count):
                    raise TrainingError(
                        f"{where}: got a node with {len(children)} children; --cell {self._config.cell} needs "
                        f"{self._child_count} or none. child-sum takes any number"
                    )
        return [encode_tree(tree, self.vocabulary, _INNER_ID, self._symbols) for tree in trees]

    def data(self) -> Iterable[NDArray[Any]]:
        for tree in self._training:
            yield from (tree.tokens, tree.labels, tree.children)

    def loss(self, network: NodeLabeller, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        batch = make_batch([self._training[index] for index in self._batch_indices(step)], self._child_count)
        # All nodes have the same weight: a larger weight for roots does not improve their labels.
        return functional.cross_entropy(network(batch).float(), batch.labels), {}, len(batch.tokens)

    def _batch_indices(self, step: int) -> NDArray[np.int64]:
        """The trees of a batch; each occurs once an epoch."""
        size = min(self._config.lanes, len(self._training))
        epoch, within = divmod(step, len(self._training) // size)
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self._training))
        return order[within * size : (within + 1) * size]

    def validate(self, network: NodeLabeller, *, rows: int) -> Validation:
        tally = Tally()
        for batch, logits in self._labelled(network, self._validation):
            tally.add(logits[batch.roots], batch.labels[batch.roots])
        validation = tally.validation()
        assert validation.accuracy is not None
        return replace(validation, criterion=1 - validation.accuracy)

    def _labelled(self, network: NodeLabeller, trees: Sequence[EncodedTree]) -> Iterable[tuple[TreeBatch, Tensor]]:
        for start in range(0, len(trees), _EVALUATION_TREES):
            batch = make_batch(trees[start : start + _EVALUATION_TREES], self._child_count)
            yield batch, network(batch)

    def test(self, network: NodeLabeller, progress: Progress) -> dict[str, float]:
        """Measure the accuracy on the roots, and on all nodes, of the test trees.

        If the labels are an odd number of grades with a neutral one in the middle, also the share of non-neutral roots
        that the network puts on the correct side of it.
        """
        nodes, roots, sides = _Accuracy(), _Accuracy(), _Accuracy()
        middle = len(self.labels) // 2
        for index, (batch, logits) in enumerate(self._labelled(network, self._test)):
            progress("testing", index * _EVALUATION_TREES / len(self._test))
            nodes.add(logits.argmax(1) == batch.labels)
            at_roots, targets = logits[batch.roots], batch.labels[batch.roots]
            roots.add(at_roots.argmax(1) == targets)
            probabilities = at_roots.softmax(1)
            positive = probabilities[:, middle + 1 :].sum(1) > probabilities[:, :middle].sum(1)
            not_neutral = targets != middle
            sides.add(positive[not_neutral] == (targets[not_neutral] > middle))
        measured = {"test_root_accuracy": roots.value, "test_node_accuracy": nodes.value}
        if _are_grades(self._symbols) and sides.total:
            measured["test_root_accuracy_binary"] = sides.value
        return measured


class _Accuracy:
    def __init__(self) -> None:
        self.total = 0
        self._correct = 0

    def add(self, correct: Tensor) -> None:
        self.total += len(correct)
        self._correct += int(correct.sum())

    @property
    def value(self) -> float:
        return self._correct / self.total


def _are_grades(symbols: Sequence[str]) -> bool:
    """Whether labels are the numbers from 0 on and have one in the middle."""
    return list(symbols) == [str(grade) for grade in range(len(symbols))] and len(symbols) % 2 == 1 and len(symbols) > 1
