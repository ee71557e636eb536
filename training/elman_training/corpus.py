"""What there is to learn from: text, labelled examples, and text with a label for every character.

Two sources for each: the embedded corpus "stdlib", the source of the running interpreter's standard library, which
needs no download; and files of the user's own.
"""

from __future__ import annotations

import hashlib
import io
import keyword
import sysconfig
import token
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from elman_training.errors import TrainingError

STDLIB = "stdlib"
_SKIPPED_FOLDERS = {
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "ensurepip",
}


@dataclass(frozen=True)
class LabelledExample:
    """A text and its class."""

    text: str
    label: str


@dataclass(frozen=True)
class LabelledText:
    """A text with one label for every character: `labels[i]` belongs to `text[i]`.

    Attributes:
        text: all documents, one behind the other.
        labels: by character.
        starts: where each document starts; the first at 0.
    """

    text: str
    labels: list[str]
    starts: list[int]


def read_text(corpus: str) -> str:
    """The text of a language model's corpus: "stdlib", a UTF-8 file, or all UTF-8 files of a folder.

    Raises:
        TrainingError: there is no text, or a file is not UTF-8.
    """
    if corpus == STDLIB:
        return "\n".join(source for _, source in _stdlib_sources())
    path = existing(corpus)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    text = "\n".join(read_utf8(file) for file in files)
    if not text:
        raise TrainingError(f"{path}: holds no text")
    return text


def read_labelled_examples(corpus: str) -> list[LabelledExample]:
    """Examples for classification.

    "stdlib": snippets of source, labelled with the package they come from. A folder: one .txt file a class, named
    for it, one example a line. A file: two columns, text TAB label.

    Raises:
        TrainingError: fewer than two classes, or a line without its label.
    """
    if corpus == STDLIB:
        examples = list(_stdlib_snippets())
    else:
        path = existing(corpus)
        examples = list(_examples_of_folder(path) if path.is_dir() else _examples_of_tsv(path))
    if len({example.label for example in examples}) < 2:
        raise TrainingError(f"{corpus}: classification needs examples of at least two classes")
    return examples


def read_labelled_text(corpus: str, limit: int | None = None) -> LabelledText:
    """Text for tagging.

    "stdlib" or a folder: Python source, every character labelled with the class that `tokenize` gives it, cut into
    documents at top-level statements. A file: lines of piece TAB label, where a piece may be any text with \\n, \\r,
    \\t and \\\\ escaped; the pieces are joined, and an empty line starts a new document.

    Args:
        corpus: where to read.
        limit: stop after about this many characters, behind a whole document or source.

    Raises:
        TrainingError: nothing can be read from there.
    """
    if corpus == STDLIB:
        return _tag_sources((source for _, source in _stdlib_sources()), limit)
    path = existing(corpus)
    if path.is_file():
        return _labelled_text_of_tsv(path, limit)
    tagged = _tag_sources((read_utf8(file) for file in sorted(path.rglob("*.py"))), limit)
    if not tagged.text:
        raise TrainingError(f"{path}: holds no Python files to label; give a TSV file of piece TAB label instead")
    return tagged


def existing(corpus: str) -> Path:
    path = Path(corpus)
    if not path.exists():
        raise TrainingError(f"{corpus}: there is no such file or folder (the embedded corpus is called {STDLIB!r})")
    return path


def read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: byte {error.start} is not UTF-8; convert the file or leave it out") from error


def _stdlib_sources() -> list[tuple[Path, str]]:
    """Every module of the standard library, in an order that mixes packages but is the same on each run."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts) and not relative.parts[0].startswith("config-"):
            try:
                found.append((relative, path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:  # A few modules declare another encoding.
                continue
    return sorted(found, key=lambda item: hashlib.sha256(item[0].as_posix().encode()).digest())


_SNIPPET_LINES = 6
_SNIPPETS_A_PACKAGE = 600
_PACKAGES = 10


def _stdlib_snippets() -> Iterator[LabelledExample]:
    snippets: dict[str, list[str]] = defaultdict(list)
    for path, source in _stdlib_sources():
        if len(path.parts) > 1:
            lines = [line for line in source.splitlines() if line.strip()]
            for start in range(0, len(lines) - _SNIPPET_LINES, _SNIPPET_LINES):
                snippets[path.parts[0]].append("\n".join(lines[start : start + _SNIPPET_LINES]))
    largest = sorted(snippets, key=lambda package: (-len(snippets[package]), package))[:_PACKAGES]
    for package in sorted(largest):
        for snippet in snippets[package][:_SNIPPETS_A_PACKAGE]:
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
    """Gathers labelled text, document by document."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._starts = [0]
        self.labels: list[str] = []

    def start(self) -> None:
        """What is added from now on is a new document."""
        if len(self.labels) > self._starts[-1]:
            self._starts.append(len(self.labels))

    def add(self, text: str, labels: list[str]) -> None:
        self._texts.append(text)
        self.labels.extend(labels)

    def labelled_text(self) -> LabelledText:
        starts = self._starts if self._starts[-1] < len(self.labels) or len(self._starts) == 1 else self._starts[:-1]
        return LabelledText("".join(self._texts), self.labels, starts)


_CLASS_OF_TOKEN = {token.NUMBER: "number", token.STRING: "string", tokenize.COMMENT: "comment", token.OP: "operator"}
# From Python 3.12 on an f-string is several tokens, and from 3.14 on a t-string.
_STRING_STARTS, _STRING_ENDS = (
    {getattr(token, f"{kind}STRING_{part}") for kind in "FT" if hasattr(token, f"{kind}STRING_{part}")}
    for part in ("START", "END")
)
_SPACE = "space"


def _tag_sources(sources: Iterator[str], limit: int | None) -> LabelledText:
    documents = _Documents()
    for source in sources:
        if limit is not None and len(documents.labels) >= limit:
            break
        try:
            labels = token_classes(source)
        except (tokenize.TokenError, SyntaxError):  # Not of this interpreter's grammar.
            continue
        cuts = _statement_starts(source, labels)
        for start, end in pairwise([0, *cuts, len(source)]):
            documents.start()
            documents.add(source[start:end], labels[start:end])
    return documents.labelled_text()


_DOCUMENT_LENGTH = 1000


def _statement_starts(source: str, labels: list[str]) -> list[int]:
    """Where to cut a source: at top-level statements some way apart. What is highlighted is seldom a whole file, and
    never begins inside a string."""
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


def token_classes(source: str) -> list[str]:
    """The class of every character of a Python source: keyword, name, number, string, comment, operator or space.

    Raises:
        tokenize.TokenError, SyntaxError: the source cannot be cut into tokens.
    """
    starts = [0]
    for line in io.StringIO(source):  # Cut as readline cuts: str.splitlines knows more line ends than \n.
        starts.append(starts[-1] + len(line))
    classes = [_SPACE] * len(source)
    string_starts: list[int] = []
    for found in tokenize.generate_tokens(io.StringIO(source).readline):
        start = starts[found.start[0] - 1] + found.start[1]
        end = starts[found.end[0] - 1] + found.end[1]
        if found.type in _STRING_STARTS:
            string_starts.append(start)
        elif found.type in _STRING_ENDS:
            # What lies between and is no token of an expression is string.
            first = string_starts.pop()
            classes[first:end] = ["string" if name == _SPACE else name for name in classes[first:end]]
        if found.type == token.NAME:
            name = "keyword" if keyword.iskeyword(found.string) else "name"
        elif found.type in _CLASS_OF_TOKEN:
            name = _CLASS_OF_TOKEN[found.type]
        else:
            continue
        classes[start:end] = [name] * (end - start)
    return classes
