"""Examples parted by chance, the same share of every class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from elman_training.errors import TrainingError

_Example = TypeVar("_Example")


def split_by_class(
    examples: Sequence[_Example], label_of: Callable[[_Example], str], share: float, seed: int
) -> tuple[list[_Example], list[_Example]]:
    """Part examples in two, the same share of every class (stratified); each class that has two examples or more is in
    both.

    Args:
        examples: what to part.
        label_of: the class of one.
        share: how much of each class is in the second part.
        seed: which.

    Raises:
        TrainingError: nothing would be in the second part.
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
        raise TrainingError("every class has only one example: nothing can be held out for validation")
    return first, second


def shuffled(members: Sequence[_Example], seed: int, name: str) -> list[_Example]:
    """In an order that depends on the seed and the name."""
    order = np.random.default_rng([seed, *name.encode()]).permutation(len(members))
    return [members[index] for index in order]
