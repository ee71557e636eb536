"""Text with a label for every character: Python source by token class, and files of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from pathlib import Path
from tokenize import TokenError

from elman_training.class_labels import clean_label
from elman_training.corpus_files import STDLIB, Note, existing, is_hidden, no_note, note_left_out, read_utf8
from elman_training.headings import names_text_and_label
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


def read_labelled_text(corpus: str, limit: int | None = None, note: Note = no_note) -> LabelledText:
    """The text of a corpus for tagging.

    Args:
        corpus: "stdlib" or a folder: Python source, each character labelled with the class that `tokenize` gives it,
            cut into documents at top-level statements. A file: lines of piece TAB label, where \\n, \\r, \\t and \\\\
            in a piece stand for newline, carriage return, tab and backslash; the pieces are joined, and an empty line
            starts a new document. The first line may be headings. CR LF and CR are newlines.
        limit: stop after about this number of characters, at the end of a document or source.
        note: called with what was left out.

    Raises:
        TrainingError: the corpus cannot be read or has too little in it.
    """
    if corpus == STDLIB:
        # Some of its modules are not of this interpreter's grammar, for tests of what others do.
        return _tag_sources(stdlib_sources(), limit, [])
    path = existing(corpus)
    if path.is_file():
        return _labelled_text_of_tsv(path, limit, note)
    left_out = [str(file.relative_to(path)) for file in sorted(path.rglob("*.py")) if is_hidden(file, path)]
    files = [file for file in sorted(path.rglob("*.py")) if not is_hidden(file, path)]
    tagged = _tag_sources(((file.relative_to(path), read_utf8(file)) for file in files), limit, left_out)
    note_left_out(path, left_out, note)
    if not tagged.text:
        raise TrainingError(f"{path}: holds no Python files to label; give a TSV file of piece TAB label instead")
    return tagged


def _labelled_text_of_tsv(path: Path, limit: int | None, note: Note) -> LabelledText:
    documents = _Documents()
    lines = read_utf8(path).split("\n")
    headings = _headings(lines)
    if headings is not None:
        note(f"{path}:{headings + 1}: read as headings: {lines[headings][:60]!r}")
        lines[headings] = ""
    for number, line in enumerate(lines, start=1):
        if not line:
            if limit is not None and len(documents.labels) >= limit:
                break
            documents.start()
            continue
        piece, tab, label = line.rpartition("\t")
        label = clean_label(label)
        if not (tab and piece and label):
            raise TrainingError(f"{path}:{number}: expected piece TAB label, found {line[:60]!r}")
        parts = piece.split("\\\\")
        plain = "\\".join(part.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t") for part in parts)
        documents.add(plain, [label] * len(plain))
    labelled = documents.labelled_text()
    if len(set(labelled.labels)) < 2:
        raise TrainingError(f"{path}: tagging needs at least two labels")
    return labelled


def _headings(lines: Sequence[str]) -> int | None:
    """The index of the line with the headings; None if there is none."""
    first = next((index for index, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return None
    others = {clean_label(line.rpartition("\t")[2]) for line in lines[first + 1 :]}
    piece, _, label = lines[first].rpartition("\t")
    return first if names_text_and_label(piece, clean_label(label), others) else None


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


def _tag_sources(sources: Iterable[tuple[Path, str]], limit: int | None, left_out: list[str]) -> LabelledText:
    documents = _Documents()
    for path, source in sources:
        if limit is not None and len(documents.labels) >= limit:
            break
        try:
            labels = token_classes(source)
        except (TokenError, SyntaxError):
            left_out.append(f"{path} (not of this interpreter's grammar)")
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
