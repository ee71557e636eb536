"""Text with a label for every character: Python source by token class, and files of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from pathlib import Path
from tokenize import TokenError

from elman_training.corpus_files import STDLIB, existing, read_utf8
from elman_training.labels.python_tokens import token_classes
from elman_training.language.text_corpus import stdlib_sources
from elman_training.training_error import TrainingError

_DOCUMENT_LENGTH = 1000  # characters, the fewest of a document cut from a source


@dataclass(frozen=True)
class LabelledText:
    """A text with one label for every character: `labels[i]` belongs to `text[i]`.

    Attributes:
        text: all documents, one after the other.
        labels: the label of each character.
        starts: where each document starts; the first at 0.
    """

    text: str
    labels: list[str]
    starts: list[int]


def read_labelled_text(corpus: str, limit: int | None = None) -> LabelledText:
    """The text of a corpus for tagging.

    Args:
        corpus: "stdlib" or a folder: Python source, each character labelled with the class that `tokenize` gives it,
            cut into documents at top-level statements. A file: lines of piece TAB label, where \\n, \\r, \\t and \\\\
            in a piece stand for newline, carriage return, tab and backslash; the pieces are joined, and an empty line
            starts a new document. CR LF and CR are newlines.
        limit: stop after about this number of characters, at the end of a document or source.

    Raises:
        TrainingError: the corpus cannot be read or has too little in it.
    """
    if corpus == STDLIB:
        return _tag_sources((source for _, source in stdlib_sources()), limit)
    path = existing(corpus)
    if path.is_file():
        return _labelled_text_of_tsv(path, limit)
    tagged = _tag_sources((read_utf8(file) for file in sorted(path.rglob("*.py"))), limit)
    if not tagged.text:
        raise TrainingError(f"{path}: holds no Python files to label; give a TSV file of piece TAB label instead")
    return tagged


def _labelled_text_of_tsv(path: Path, limit: int | None) -> LabelledText:
    documents = _Documents()
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line:
            if limit is not None and len(documents.labels) >= limit:
                break
            documents.start()
            continue
        piece, tab, label = line.rpartition("\t")
        if not (tab and piece and label):
            raise TrainingError(f"{path}:{number}: expected piece TAB label, found {line[:60]!r}")
        parts = piece.split("\\\\")
        plain = "\\".join(part.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t") for part in parts)
        documents.add(plain, [label] * len(plain))
    labelled = documents.labelled_text()
    if len(set(labelled.labels)) < 2:
        raise TrainingError(f"{path}: tagging needs at least two labels")
    return labelled


class _Documents:
    """Collects labelled text, document by document."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._starts = [0]
        self.labels: list[str] = []

    def start(self) -> None:
        """Begin a new document, unless the current one is empty."""
        if len(self.labels) > self._starts[-1]:
            self._starts.append(len(self.labels))

    def add(self, text: str, labels: list[str]) -> None:
        self._texts.append(text)
        self.labels.extend(labels)

    def labelled_text(self) -> LabelledText:
        starts = self._starts if self._starts[-1] < len(self.labels) or len(self._starts) == 1 else self._starts[:-1]
        labelled = LabelledText("".join(self._texts), self.labels, starts)
        return _with_newlines(labelled) if "\r" in labelled.text else labelled


def _with_newlines(labelled: LabelledText) -> LabelledText:
    """CR LF and CR as newlines, as in every corpus. A newline has the label of the LF."""
    text, starts = labelled.text, set(labelled.starts)
    kept = [text[place : place + 2] != "\r\n" or place + 1 in starts for place in range(len(text))]
    moved = [0, *accumulate(kept)]
    return LabelledText(
        "".join(compress(text, kept)).replace("\r", "\n"),
        list(compress(labelled.labels, kept)),
        [moved[start] for start in labelled.starts],
    )


def _tag_sources(sources: Iterator[str], limit: int | None) -> LabelledText:
    documents = _Documents()
    for source in sources:
        if limit is not None and len(documents.labels) >= limit:
            break
        try:
            labels = token_classes(source)
        except (TokenError, SyntaxError):  # Not of this interpreter's grammar.
            continue
        cuts = _statement_starts(source, labels)
        for start, end in pairwise([0, *cuts, len(source)]):
            documents.start()
            documents.add(source[start:end], labels[start:end])
    return documents.labelled_text()


def _statement_starts(source: str, labels: list[str]) -> list[int]:
    """The positions at which to cut a source: top-level statements some way apart.

    Text to be highlighted is seldom a whole file, and never begins inside a string.
    """
    cuts: list[int] = []
    last = 0
    position = source.find("\n") + 1
    while 0 < position < len(source):
        begins = labels[position] in ("keyword", "name", "comment") or source[position] == "@"
        if position - last >= _DOCUMENT_LENGTH and begins:
            cuts.append(position)
            last = position
        position = source.find("\n", position) + 1
    return cuts
