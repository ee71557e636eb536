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
from pathlib import Path

from training.errors import TrainingError

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
    """A text with one label for every character: `labels[i]` belongs to `text[i]`."""

    text: str
    labels: list[str]


def read_text(corpus: str) -> str:
    """The text of a language model's corpus: "stdlib", a UTF-8 file, or all UTF-8 files of a folder.

    Raises:
        TrainingError: there is no text, or a file is not UTF-8.
    """
    if corpus == STDLIB:
        return "\n".join(source for _, source in _stdlib_sources())
    path = _existing(corpus)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    text = "\n".join(_read_utf8(file) for file in files)
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
        path = _existing(corpus)
        examples = list(_examples_of_folder(path) if path.is_dir() else _examples_of_tsv(path))
    if len({example.label for example in examples}) < 2:
        raise TrainingError(f"{corpus}: classification needs examples of at least two classes")
    return examples


def read_labelled_text(corpus: str, limit: int | None = None) -> LabelledText:
    """Text for tagging.

    "stdlib" or a folder: Python source, every character labelled with the class that `tokenize` gives it. A file:
    lines of piece TAB label, where a piece may be any text with \\n, \\t and \\\\ escaped; the pieces are joined.

    Args:
        corpus: where to read.
        limit: stop after about this many characters.

    Raises:
        TrainingError: nothing can be read from there.
    """
    if corpus == STDLIB:
        return _tag_sources((source for _, source in _stdlib_sources()), limit)
    path = _existing(corpus)
    if path.is_file():
        return _labelled_text_of_tsv(path)
    tagged = _tag_sources((_read_utf8(file) for file in sorted(path.rglob("*.py"))), limit)
    if not tagged.text:
        raise TrainingError(f"{path}: holds no Python files to label; give a TSV file of piece TAB label instead")
    return tagged


def _existing(corpus: str) -> Path:
    path = Path(corpus)
    if not path.exists():
        raise TrainingError(f"{corpus}: there is no such file or folder (the embedded corpus is called {STDLIB!r})")
    return path


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
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
        for line in _read_utf8(path).split("\n"):
            if line.strip():
                yield LabelledExample(line.strip(), path.stem)


def _examples_of_tsv(path: Path) -> Iterator[LabelledExample]:
    for number, line in enumerate(_read_utf8(path).split("\n"), start=1):
        if line.strip():
            text, tab, label = line.rpartition("\t")
            if not (tab and text and label):
                raise TrainingError(f"{path}:{number}: expected text TAB label, found {line[:60]!r}")
            yield LabelledExample(text, label)


def _labelled_text_of_tsv(path: Path) -> LabelledText:
    text: list[str] = []
    labels: list[str] = []
    for number, line in enumerate(_read_utf8(path).split("\n"), start=1):
        if line:
            piece, tab, label = line.rpartition("\t")
            if not (tab and piece and label):
                raise TrainingError(f"{path}:{number}: expected piece TAB label, found {line[:60]!r}")
            plain = "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in piece.split("\\\\"))
            text.append(plain)
            labels.extend([label] * len(plain))
    if len(set(labels)) < 2:
        raise TrainingError(f"{path}: tagging needs at least two labels")
    return LabelledText("".join(text), labels)


_CLASS_OF_TOKEN = {token.NUMBER: "number", token.STRING: "string", tokenize.COMMENT: "comment", token.OP: "operator"}
# From Python 3.12 on an f-string is several tokens.
for _name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"):
    if hasattr(token, _name):
        _CLASS_OF_TOKEN[getattr(token, _name)] = "string"
_SPACE = "space"


def _tag_sources(sources: Iterator[str], limit: int | None) -> LabelledText:
    text: list[str] = []
    labels: list[str] = []
    for source in sources:
        if limit is not None and len(labels) >= limit:
            break
        try:
            labels.extend(token_classes(source))
        except (tokenize.TokenError, SyntaxError):  # Not of this interpreter's grammar.
            continue
        text.append(source)
    return LabelledText("".join(text), labels)


def token_classes(source: str) -> list[str]:
    """The class of every character of a Python source: keyword, name, number, string, comment, operator or space.

    Raises:
        tokenize.TokenError, SyntaxError: the source cannot be cut into tokens.
    """
    starts = [0]
    for line in io.StringIO(source):  # Cut as readline cuts: str.splitlines knows more line ends than \n.
        starts.append(starts[-1] + len(line))
    classes = [_SPACE] * len(source)
    for found in tokenize.generate_tokens(io.StringIO(source).readline):
        if found.type == token.NAME:
            name = "keyword" if keyword.iskeyword(found.string) else "name"
        elif found.type in _CLASS_OF_TOKEN:
            name = _CLASS_OF_TOKEN[found.type]
        else:
            continue
        start = starts[found.start[0] - 1] + found.start[1]
        end = starts[found.end[0] - 1] + found.end[1]
        classes[start:end] = [name] * (end - start)
    return classes
