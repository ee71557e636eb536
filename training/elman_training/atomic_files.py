"""Files that are replaced completely or not at all, so that a killed run leaves a readable folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file next to `path` and move it over: readers see the old file or the new one.

    Args:
        path: the file to replace.
        write: called with the path of the temporary file.
    """
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)
