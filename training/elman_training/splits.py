"""Stratified random splits: the same share of every class in each part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from elman_training.training_error import TrainingError

_Example = TypeVar("_Example")


def split_by_class(
    examples: Sequence[_Example], label_of: Callable[[_Example], str], share: float, seed: int
) -> tuple[list[_Example], list[_Example]]:
    """Split examples in two; each class that has two examples or more is in both parts.

    Args:
        examples: the examples to split.
        label_of: returns the class of an example.
        share: the share of each class in the second part.
        seed: determines which examples these are.

    Raises:
        TrainingError: the second part would be empty.
    """
    by_class: dict[str, list[_Example]] = defaultdict(list)
    for example in examples:
        by_class[label_of(example)].append(example)
    first: list[_Example] = []
    second: list[_Example] = []
    for label, members in sorted(by_class.items()):
        order = shuffled(members, seed, label)
        count = min(len(members) - 1, max(1, round(len(members) * share)))
        second.extend(order[:count])
        first.extend(order[count:])
    if not second:
        raise TrainingError("got one example of every class; validation needs a class with two or more")
    return first, second


def shuffled(members: Sequence[_Example], seed: int, name: str) -> list[_Example]:
    """The members in a random order that depends on the seed and the name alone."""
    order = np.random.default_rng([seed, *name.encode()]).permutation(len(members))
    return [members[index] for index in order]
