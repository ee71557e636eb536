"""Reading the files of a corpus."""

from __future__ import annotations

from pathlib import Path

from elman_training.training_error import TrainingError

STDLIB = "stdlib"  # the embedded corpus: the source of the running interpreter's standard library


def existing(corpus: str) -> Path:
    """The path of a corpus.

    Raises:
        TrainingError: there is no such file or folder.
    """
    path = Path(corpus)
    if not path.exists():
        raise TrainingError(f"{corpus}: there is no such file or folder (the embedded corpus is called {STDLIB!r})")
    return path


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        TrainingError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: byte {error.start} is not UTF-8; convert the file or leave it out") from error
