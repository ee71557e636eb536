"""Presets of `elman train`: values that have been tried together, which options replace one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elman_training.config import DIGITS, STORIES
from elman_training.corpus_files import STDLIB

# The preset of a task where none is named.
DEFAULT_PRESETS: Mapping[str, str] = {
    "lm": "python",
    "classify": "python-packages",
    "tag": "python-tags",
    "features": "digits",
    "tree": "sentiment-tree",
    "translate": "german-english",
}

# What each preset is for, and how long it takes on two cores.
PRESET_NOTES: Mapping[str, str] = {
    "python": "Python source by characters, two to four minutes; the start for other texts, too",
    "python-words": "the same by words, three minutes",
    "python-subwords": "the same by subwords, three minutes",
    "python-tags": "streaming syntax highlighting, half a minute",
    "python-packages": "which package of the standard library a snippet comes from, three minutes",
    "shakespeare": "a megabyte of text, 20 minutes",
    "names": "short texts by class, two minutes",
    "sentiment": "sentences of a treebank, read left to right, four minutes",
    "sentiment-bidirectional": "the same read in both directions, four minutes",
    "digits": "images of handwritten digits, 8 by 8, seconds",
    "sentiment-tree": "grades of sentences and their phrases by a child-sum Tree-LSTM, two minutes",
    "sentiment-binary-tree": "the same by a binary Tree-LSTM, four minutes",
    "sentiment-recursive": "the same by a plain recursive network, three minutes",
    "phonemes": "how English words are pronounced, by way of one vector, up to an hour",
    "german-english": "translation with attention, up to an hour",
    "stories": "questions about generated stories, answered in words, ten minutes",
}

# The labels 0 to 4 of the Stanford Sentiment Treebank.
_GRADES = ("very negative", "negative", "neutral", "positive", "very positive")

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "python": {
        "task": "lm", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 96, "hidden": 384, "dropout": 0.0, "lanes": 32,
        "window": 96, "steps": 960, "learning_rate": 4e-3, "minimum_count": 50, "corpus_limit": 6_000_000,
        "validate_every": 240, "validation_limit": 100_000, "average_decay": 0.98,
    },
    "python-words": {
        "task": "lm", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 128, "hidden": 256, "dropout": 0.1, "lanes": 32,
        "window": 48, "steps": 960, "learning_rate": 4e-3, "vocabulary": "words", "minimum_count": 5,
        "corpus_limit": 6_000_000, "validate_every": 240, "validation_limit": 50_000, "average_decay": 0.98,
    },
    "python-subwords": {
        "task": "lm", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 128, "hidden": 256, "dropout": 0.1, "lanes": 32,
        "window": 48, "steps": 960, "learning_rate": 4e-3, "vocabulary": "subwords",
        "corpus_limit": 6_000_000, "validate_every": 240, "validation_limit": 50_000, "average_decay": 0.98,
    },
    "python-tags": {
        "task": "tag", "corpus": STDLIB,
        "cell": "lstm", "layers": 1, "embedding": 64, "hidden": 128, "dropout": 0.0, "lanes": 64,
        "window": 96, "steps": 600, "learning_rate": 6e-3, "minimum_count": 50, "corpus_limit": 2_000_000,
        "validate_every": 100, "validation_limit": 100_000,
    },
    "python-packages": {
        "task": "classify", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 64, "hidden": 192, "dropout": 0.2, "lanes": 64,
        "steps": 600, "learning_rate": 4e-3, "validate_every": 100,
    },
    "shakespeare": {
        "task": "lm", "cell": "lstm", "layers": 2, "embedding": 128, "hidden": 384, "dropout": 0.3, "lanes": 64,
        "window": 128, "steps": 3400, "learning_rate": 3e-3, "warmup_steps": 100, "weight_decay": 0.05,
        "average_decay": 0.995, "precision": "bfloat16", "validate_every": 400,
    },
    "names": {
        "task": "classify", "cell": "lstm", "layers": 1, "embedding": 64, "hidden": 256, "dropout": 0.4, "lanes": 64,
        "minimum_count": 1, "steps": 3000, "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 200,
        "weight_decay": 0.05,
    },
    "sentiment": {
        "task": "classify", "vocabulary": "symbols", "vocabulary_size": 20_000, "lower_case": True, "minimum_count": 2,
        "phrases": True, "polarity": True, "cell": "lstm", "layers": 1, "embedding": 128, "hidden": 192,
        "dropout": 0.5, "lanes": 64, "steps": 3000, "learning_rate": 2e-3, "average_decay": 0.995,
        "validate_every": 200, "weight_decay": 0.05,
    },
    "sentiment-bidirectional": {
        "task": "classify", "vocabulary": "symbols", "vocabulary_size": 20_000, "lower_case": True, "minimum_count": 2,
        "phrases": True, "polarity": True, "bidirectional": True, "cell": "lstm", "layers": 1, "embedding": 128,
        "hidden": 128, "dropout": 0.5, "lanes": 64, "steps": 3000, "learning_rate": 2e-3, "average_decay": 0.995,
        "validate_every": 200, "weight_decay": 0.05,
    },
    "digits": {
        "task": "features", "corpus": DIGITS,
        "layers": 2, "hidden": 256, "dropout": 0.4, "input_noise": 0.5, "lanes": 64, "steps": 800,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 100, "weight_decay": 0.05,
    },
    "sentiment-tree": {
        "task": "tree", "cell": "child-sum", "label_names": _GRADES, "dropout": 0.5, "steps": 2160,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 135,
    },
    "sentiment-binary-tree": {
        "task": "tree", "cell": "binary", "label_names": _GRADES, "dropout": 0.5, "steps": 2160,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 135,
    },
    "sentiment-recursive": {
        "task": "tree", "cell": "recursive", "label_names": _GRADES, "dropout": 0.5, "steps": 2160,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 135,
    },
    "phonemes": {
        "task": "translate", "cell": "lstm", "layers": 1, "embedding": 64, "hidden": 512, "attention": False,
        "source_vocabulary": "characters", "vocabulary": "symbols", "minimum_count": 1, "longest_source": 40,
        "longest_target": 40, "dropout": 0.25, "label_smoothing": 0.1, "lanes": 128, "steps": 14_000,
        "learning_rate": 2e-3, "warmup_steps": 200, "average_decay": 0.998, "precision": "bfloat16",
        "validate_every": 1000,
    },
    "german-english": {
        "task": "translate", "cell": "lstm", "layers": 1, "embedding": 256, "hidden": 384, "attention": True,
        "source_vocabulary": "subwords", "source_vocabulary_size": 4096, "vocabulary": "subwords",
        "vocabulary_size": 4096, "longest_source": 80, "longest_target": 80, "dropout": 0.3, "label_smoothing": 0.1,
        "lanes": 64, "steps": 4500, "learning_rate": 2e-3, "warmup_steps": 400, "average_decay": 0.998,
        "precision": "bfloat16", "validate_every": 500,
    },
    "stories": {
        "task": "translate", "corpus": STORIES,
        "cell": "lstm", "layers": 1, "embedding": 128, "hidden": 128, "attention": True,
        "attention_score": "multiplicative", "source_deviation": 1.0,
        "source_vocabulary": "symbols", "vocabulary": "symbols", "minimum_count": 1, "longest_source": 150,
        "longest_target": 8, "dropout": 0.0, "lanes": 32, "steps": 24_000, "learning_rate": 3e-3, "warmup_steps": 200,
        "curriculum": 0.6, "average_decay": 0.998, "precision": "bfloat16", "validate_every": 1000,
    },
}  # fmt: skip
