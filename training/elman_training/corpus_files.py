"""Reading the files of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from elman_training.training_error import TrainingError

# Called with each note about a corpus: what was left out of it, and what its classes are.
Note = Callable[[str], None]
STDLIB = "stdlib"  # the embedded corpus: the source of the running interpreter's standard library
_SHOWN = 10  # names


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


def no_note(text: str) -> None:
    """Discard a note."""


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file of a folder, or a folder that it is in, is hidden: its name begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def note_left_out(corpus: Path, names: Sequence[str], note: Note) -> None:
    """Note which files of a corpus were left out, if any were."""
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        note(f"{corpus}: left out: {', '.join(names[:_SHOWN])}{more}")
