"""Room on the disk that is kept for deleting: a full disk could otherwise never be emptied."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_MODE = 0o600
_BYTES = 4 * 2**20  # of the log of a transaction that deletes some long sessions


class Reserve:
    """A file beside the database that holds nothing.

    Args:
        database: the file of the database.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}-reserve")
        self._fill()

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Give up the room in the block; afterwards as much is kept again, if there is."""
        self._path.unlink(missing_ok=True)
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def _fill(self) -> None:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, _MODE)
            try:
                os.posix_fallocate(file, 0, _BYTES)
            finally:
                os.close(file)
        except (OSError, AttributeError):  # There is no room, or this system reserves none.
            self._path.unlink(missing_ok=True)
