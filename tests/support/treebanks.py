"""Small treebanks with a learnable rule, and configurations that learn it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from elman_training import TreeConfig
from elman_training.trees import TREE_CELLS

QUIET = Console(quiet=True)


CELLS = sorted(TREE_CELLS)


def write_treebank(folder: Path, training: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> str:
    for name, trees in (("train", training), ("dev", validation), ("test", test)):
        (folder / f"{name}.txt").write_text("".join(f"{tree}\n" for tree in trees), encoding="utf-8")
    return str(folder)


def negations(count: int, seed: int) -> list[str]:
    """Trees of "good", "bad", "it", and "not", which negates what follows it; the label is the resulting sentiment."""
    draw = random.Random(seed)

    def phrase(depth: int) -> tuple[str, int]:
        kind = draw.random()
        if depth == 0 or kind < 0.2:
            word, grade = draw.choice([("good", 2), ("bad", 0)])
            return f"({grade} {word})", grade
        text, grade = phrase(depth - 1)
        if kind < 0.6:
            return f"({2 - grade} (1 not) {text})", 2 - grade
        return f"({grade} (1 it) {text})", grade

    return [phrase(5)[0] for _ in range(count)]


def config(corpus: str, **changes: Any) -> TreeConfig:
    values: dict[str, Any] = {
        "task": "tree", "corpus": corpus, "embedding": 8, "hidden": 16, "dropout": 0.1,
        "lanes": 16, "steps": 120, "learning_rate": 2e-2, "warmup_steps": 5, "validate_every": 20,
        "average_decay": 0.9, "minimum_count": 1,
    }  # fmt: skip
    return TreeConfig(**{**values, **changes})
