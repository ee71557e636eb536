"""Output of the commands: tables, JSON, columns. Text from elsewhere is never interpreted as markup."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 300  # columns


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal, or on long lines if there is none."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL).print(table)


def json_line(content: Mapping[str, Any]) -> str:
    """A line of JSON. A number that is not finite, which JSON cannot express, becomes null."""
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def escaped(text: str) -> str:
    """A text for one column: backslash, newline, carriage return and tab are escaped as in Python."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def shown_name(name: str) -> str:
    """The printable form of a file's name, in which Python keeps bytes that are not UTF-8 as surrogates."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def note_unknown(count: int, where: str) -> None:
    """Report unknown tokens on standard error, if there are any.

    Args:
        count: the number of unknown tokens.
        where: what they are tokens of.
    """
    if count:
        print(f"note: {count} tokens of the {where} are unknown to the model", file=sys.stderr)
