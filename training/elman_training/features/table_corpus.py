"""Tables of numbers with a label for each row: the embedded images of digits, and files of the user's own."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elman_training.class_labels import clean_label
from elman_training.config import DIGITS
from elman_training.corpus_files import Note, no_note
from elman_training.headings import names_numbers_and_label
from elman_training.training_error import TrainingError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """Examples made of numbers.

    Attributes:
        values: float32 [N, F].
        labels: the label of each row.
        features: the name of each column.
    """

    values: NDArray[np.float32]
    labels: list[str]
    features: tuple[str, ...]


def read_table(corpus: str, note: Note = no_note) -> Table:
    """Read a table.

    Args:
        corpus: "digits", 1,797 images of handwritten digits, 8 by 8 numbers from 0 to 16 (Alpaydin and Kaynak 1998),
            which come with scikit-learn; a .csv or .tsv file of numbers with the label in the last column, with or
            without a line of headings; or a .npz file with the arrays "values" [N, ...] and "labels" [N].
        note: called with what was left out.

    Raises:
        TrainingError: the corpus cannot be read, a value is not finite, or there are fewer than two classes.
    """
    if corpus == DIGITS:
        # Takes as long to import as torch.
        from sklearn.datasets import load_digits

        digits = load_digits()
        table = Table(
            digits.data.astype(np.float32), [str(label) for label in digits.target], tuple(digits.feature_names)
        )
    else:
        path = Path(corpus)
        kind = path.suffix.lower()
        if kind not in (".npz", *_SEPARATORS):
            raise TrainingError(f"{corpus}: is no .csv, .tsv or .npz file (the embedded corpus is called {DIGITS!r})")
        if not path.is_file():
            raise TrainingError(f"{corpus}: there is no such file (the embedded corpus is called {DIGITS!r})")
        table = _read_npz(path) if kind == ".npz" else _read_lines(path, _SEPARATORS[kind], note)
    if len(set(table.labels)) < 2:
        raise TrainingError(f"{corpus}: classification needs examples of at least two classes")
    return table


def _read_lines(path: Path, separator: str, note: Note) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True)
            lines = [(number, [*cells[:-1], clean_label(cells[-1])]) for number, cells in enumerate(reader, 1) if cells]
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: byte {error.start} is not UTF-8; convert the file") from error
    except csv.Error as error:
        raise TrainingError(f"{path}: cannot be read as a table: {error}") from error
    names: tuple[str, ...] = ()
    if lines and names_numbers_and_label(lines[0][1], [cells[-1] for _, cells in lines[1:]]):
        number, headings = lines.pop(0)
        note(f"{path}:{number}: read as headings: {', '.join(headings)}")
        names = tuple(name.strip() or f"column {place}" for place, name in enumerate(headings[:-1], start=1))
        _check_index(path, headings[0], [cells[0] for _, cells in lines])
    if not lines:
        raise TrainingError(f"{path}: holds no rows of numbers and a label")
    names = names or tuple(f"column {place}" for place in range(1, len(lines[0][1])))
    rows = [_numbers(cells, names, f"{path}:{number}") for number, cells in lines]
    return Table(np.array(rows, dtype=np.float32), [cells[-1] for _, cells in lines], names)


def _check_index(path: Path, heading: str, column: Sequence[str]) -> None:
    """Check that the first column is not the number of the row, which says nothing about it.

    Raises:
        TrainingError: it is.
    """
    unnamed = not heading.strip() or heading.startswith("Unnamed:")
    if unnamed and [cell.strip() for cell in column] == [str(row) for row in range(len(column))]:
        raise TrainingError(
            f"{path}:1: column 1 has no heading and counts the rows, as the index that pandas writes; it says nothing "
            "about a row. Write the table with index=False"
        )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _numbers(cells: Sequence[str], names: Sequence[str], where: str) -> list[float]:
    if len(cells) < 2 or len(cells) != len(names) + 1:
        expected = f"{len(names)} numbers and a label" if names else "numbers and a label"
        raise TrainingError(f"{where}: expected {expected}, found {len(cells)} columns")
    found = []
    for name, cell in zip(names, cells, strict=False):
        number = _number(cell)
        if number is None or not abs(number) <= _LARGEST:
            raise TrainingError(f"{where}: {name}: expected a finite number, found {cell[:60]!r}")
        found.append(number)
    if not cells[-1]:
        raise TrainingError(f"{where}: has no label in its last column")
    return found


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("values", "labels")}
    except KeyError as error:
        raise TrainingError(f'{path}: needs the arrays "values" [N, ...] and "labels" [N]: {error.args[0]}') from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path}: cannot be read as .npz: {error}") from error
    values, labels = found["values"], found["labels"]
    if values.ndim < 2 or labels.shape != values.shape[:1] or values.dtype.kind not in "fiub":
        raise TrainingError(
            f'{path}: "values" must be numbers [N, ...] and "labels" [N], '
            f"but they are {values.dtype} {list(values.shape)} and {list(labels.shape)}"
        )
    values = values.reshape(len(values), -1)
    finite = np.abs(values.astype(np.float64)) <= _LARGEST
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise TrainingError(f'{path}: row {row} of "values" is not finite')
    values = values.astype(np.float32)
    names = tuple(f"column {place}" for place in range(1, values.shape[1] + 1))
    return Table(values, [_label(label, path, row) for row, label in enumerate(labels.tolist())], names)


def _label(label: object, path: Path, row: int) -> str:
    """An entry of "labels" as a text."""
    if isinstance(label, bytes):
        label = label.decode(errors="replace")
    text = "" if label != label or label is None else clean_label(str(label))  # Only NaN differs from itself.
    if not text:
        raise TrainingError(f'{path}: row {row} of "labels" has no label: got {label!r}')
    return text
