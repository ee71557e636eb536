"""Corpora of plain text: the embedded corpus "stdlib", which needs no download, and files of the user's own."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from elman_training.corpus_files import STDLIB, Note, existing, is_hidden, no_note, note_left_out, read_utf8
from elman_training.training_error import TrainingError

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


def read_text(corpus: str, note: Note = no_note) -> str:
    """The text of a language model's corpus.

    Args:
        corpus: "stdlib", a UTF-8 file, or a folder, all of whose files are read but the hidden ones.
        note: called with what was left out.

    Raises:
        TrainingError: there is no text, or a file is not UTF-8.
    """
    if corpus == STDLIB:
        return "\n".join(source for _, source in stdlib_sources())
    path = existing(corpus)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    hidden = [str(file.relative_to(path)) for file in files if path.is_dir() and is_hidden(file, path)]
    note_left_out(path, hidden, note)
    files = [file for file in files if not (path.is_dir() and is_hidden(file, path))]
    text = "\n".join(read_utf8(file) for file in files)
    if not text:
        raise TrainingError(f"{path}: holds no text")
    return text


def stdlib_sources() -> list[tuple[Path, str]]:
    """The path and source of every module of the standard library.

    The order mixes packages and is the same on each run.
    """
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
