"""Corpora of labelled texts: snippets of the standard library, and files of the user's own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elman_training.class_labels import clean_label
from elman_training.corpus_files import STDLIB, Note, existing, no_note, note_left_out, read_utf8
from elman_training.headings import names_text_and_label
from elman_training.language.text_corpus import stdlib_sources
from elman_training.training_error import TrainingError

_SNIPPET_LINES = 6
_SNIPPETS_PER_PACKAGE = 600
_PACKAGES = 10
# Files that tell of others by custom.
_ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|changes|requirements)([-_. ].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class LabelledExample:
    """A text and its class."""

    text: str
    label: str


def read_labelled_examples(corpus: str, note: Note = no_note) -> list[LabelledExample]:
    """The examples of a corpus for classification.

    Args:
        corpus: "stdlib", snippets of source labelled with the package they come from; a folder with one CLASS.txt for
            each class, one example a line; or a file of two columns, text TAB label, with or without a line of
            headings.
        note: called with what was left out.

    Raises:
        TrainingError: there are fewer than two classes, or a line has no label.
    """
    if corpus == STDLIB:
        examples = list(_stdlib_snippets())
    else:
        path = existing(corpus)
        examples = _examples_of_folder(path, note) if path.is_dir() else _examples_of_tsv(path, note)
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


def _examples_of_folder(folder: Path, note: Note) -> list[LabelledExample]:
    examples: list[LabelledExample] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        reason = _no_class(path)
        if reason:
            left_out.append(f"{path.name} ({reason})")
            continue
        lines = [line.strip() for line in read_utf8(path).split("\n") if line.strip()]
        if not lines:
            left_out.append(f"{path.name} (holds no example)")
        examples += [LabelledExample(line, clean_label(path.stem)) for line in lines]
    note_left_out(folder, left_out, note)
    return examples


def _no_class(path: Path) -> str:
    """Why a file in a folder of classes is none; empty if it is one."""
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "not a file"
    if path.suffix.lower() != ".txt":
        return "not named CLASS.txt"
    return "about the others" if _ABOUT.fullmatch(path.stem) else ""


def _examples_of_tsv(path: Path, note: Note) -> list[LabelledExample]:
    examples: list[LabelledExample] = []
    lines = [(number, line) for number, line in enumerate(read_utf8(path).split("\n"), start=1) if line.strip()]
    columns = {line.count("\t") + 1 for _, line in lines}
    if len(lines) > 1 and len(columns) == 1 and columns != {1} and columns != {2}:
        raise TrainingError(f"{path}: got {min(columns)} columns in every line; expected text TAB label")
    for number, line in lines:
        text, tab, label = line.rpartition("\t")
        label = clean_label(label)
        if not (tab and text.strip() and label):
            raise TrainingError(f"{path}:{number}: expected text TAB label, found {line[:60]!r}")
        examples.append(LabelledExample(text, label))
    first = examples[:1]
    if first and names_text_and_label(first[0].text, first[0].label, {example.label for example in examples[1:]}):
        note(f"{path}:{lines[0][0]}: read as headings: {lines[0][1][:60]!r}")
        return examples[1:]
    return examples
