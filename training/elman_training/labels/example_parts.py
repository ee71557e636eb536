"""The parts of a corpus for classification: training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elman_training.config import TextConfig
from elman_training.corpus_files import Note, no_note
from elman_training.labels.example_corpus import LabelledExample, read_labelled_examples
from elman_training.splits import split_by_class
from elman_training.training_error import TrainingError
from elman_training.trees.treebank import LabelledTree, read_treebank

_PARTS = ("train.txt", "dev.txt", "test.txt")
# By the labels of the Stanford Sentiment Treebank (Socher et al. 2013); the label between them is neutral.
_POLARITY = {"0": "negative", "1": "negative", "3": "positive", "4": "positive"}
_NEUTRAL = "2"


@dataclass(frozen=True)
class ExampleParts:
    """A corpus for classification.

    Attributes:
        training: the examples to learn from.
        held_out: the examples that decide which weights are kept.
        test: the examples on which the kept weights are measured at the end; empty if the corpus has no such part.
    """

    training: list[LabelledExample]
    held_out: list[LabelledExample]
    test: list[LabelledExample]


def read_example_parts(config: TextConfig, note: Note = no_note) -> ExampleParts:
    """The examples of a configuration's corpus.

    A treebank has its own parts; of any other corpus, a share of each class is held out.

    Args:
        config: the configuration.
        note: called with what was left out.

    Raises:
        TrainingError: the corpus cannot be used.
    """
    if not _is_treebank(config.corpus):
        for name in ("phrases", "polarity"):
            if getattr(config, name):
                raise TrainingError(
                    f"{config.corpus}: {name} needs a treebank: a folder with {', '.join(_PARTS)}; "
                    "--task classify without a preset takes other examples"
                )
        examples = read_labelled_examples(config.corpus, note)
        return ExampleParts(*split_by_class(examples, _label_of, config.held_out, config.seed), [])
    treebank = read_treebank(config.corpus, note)
    parts = ExampleParts(
        _distinct(_examples(treebank.training, config, phrases=config.phrases)),
        list(_examples(treebank.validation, config)),
        list(_examples(treebank.test, config)),
    )
    _check_labels(config.corpus, parts)
    return parts


def _label_of(example: LabelledExample) -> str:
    return example.label


def _is_treebank(corpus: str) -> bool:
    folder = Path(corpus)
    if not all((folder / part).is_file() for part in _PARTS):
        return False
    with (folder / _PARTS[0]).open("rb") as file:
        return file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"(")


def _examples(trees: Sequence[LabelledTree], config: TextConfig, *, phrases: bool = False) -> Iterator[LabelledExample]:
    for tree in trees:
        words: list[tuple[str, ...]] = []  # of each node
        for word, children in zip(tree.words, tree.children, strict=True):
            words.append((word,) if word is not None else tuple(part for child in children for part in words[child]))
        for node in range(len(words)) if phrases else (len(words) - 1,):
            label = tree.labels[node]
            if not config.polarity:
                yield LabelledExample(" ".join(words[node]), label)
            elif label in _POLARITY:
                yield LabelledExample(" ".join(words[node]), _POLARITY[label])
            elif label != _NEUTRAL:
                raise TrainingError(
                    f"{config.corpus}: got the label {label!r}; polarity needs the labels 0 to 4. "
                    "--task classify without a preset takes labels as they are"
                )


def _distinct(examples: Iterator[LabelledExample]) -> list[LabelledExample]:
    # Otherwise a word that occurs in every other sentence would be half of all phrases.
    return list(dict.fromkeys(examples))


def _check_labels(corpus: str, parts: ExampleParts) -> None:
    known = {example.label for example in parts.training}
    if len(known) < 2:
        raise TrainingError(f"{corpus}: classification needs examples of at least two classes")
    for part, examples in (("dev.txt", parts.held_out), ("test.txt", parts.test)):
        if not examples:
            raise TrainingError(f"{Path(corpus) / part}: holds no example to measure on")
        unknown = {example.label for example in examples} - known
        if unknown:
            raise TrainingError(f"{Path(corpus) / part}: the label {min(unknown)!r} does not occur in train.txt")
