"""Corpora of labelled texts: snippets of the standard library, and files of the user's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elman_training.corpus_files import STDLIB, existing, read_utf8
from elman_training.language.text_corpus import stdlib_sources
from elman_training.training_error import TrainingError

_SNIPPET_LINES = 6
_SNIPPETS_PER_PACKAGE = 600
_PACKAGES = 10


@dataclass(frozen=True)
class LabelledExample:
    """A text and its class."""

    text: str
    label: str


def read_labelled_examples(corpus: str) -> list[LabelledExample]:
    """The examples of a corpus for classification.

    Args:
        corpus: "stdlib", snippets of source labelled with the package they come from; a folder with one CLASS.txt for
            each class, one example a line; or a file of two columns, text TAB label.

    Raises:
        TrainingError: there are fewer than two classes, or a line has no label.
    """
    if corpus == STDLIB:
        examples = list(_stdlib_snippets())
    else:
        path = existing(corpus)
        examples = list(_examples_of_folder(path) if path.is_dir() else _examples_of_tsv(path))
    if len({example.label for example in examples}) < 2:
        raise TrainingError(f"{corpus}: classification needs examples of at least two classes")
    return examples


def _stdlib_snippets() -> Iterator[LabelledExample]:
    snippets: dict[str, list[str]] = defaultdict(list)
    for path, source in stdlib_sources():
        if len(path.parts) > 1:
            lines = [line for line in source.splitlines() if line.strip()]
            for start in range(0, len(lines) - _SNIPPET_LINES, _SNIPPET_LINES):
                snippets[path.parts[0]].append("\n".join(lines[start : start + _SNIPPET_LINES]))
    largest = sorted(snippets, key=lambda package: (-len(snippets[package]), package))[:_PACKAGES]
    for package in sorted(largest):
        for snippet in snippets[package][:_SNIPPETS_PER_PACKAGE]:
            yield LabelledExample(snippet, package)


def _examples_of_folder(folder: Path) -> Iterator[LabelledExample]:
    for path in sorted(folder.glob("*.txt")):
        for line in read_utf8(path).split("\n"):
            if line.strip():
                yield LabelledExample(line.strip(), path.stem)


def _examples_of_tsv(path: Path) -> Iterator[LabelledExample]:
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            text, tab, label = line.rpartition("\t")
            if not (tab and text and label):
                raise TrainingError(f"{path}:{number}: expected text TAB label, found {line[:60]!r}")
            yield LabelledExample(text, label)
