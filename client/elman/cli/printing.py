"""How commands print: tables, JSON, lines of columns. What others have written is never taken as markup."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WITHOUT_TERMINAL = 300  # columns


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: as wide as a terminal, and on wide lines where there is none."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else _WITHOUT_TERMINAL).print(table)


def json_line(said: Mapping[str, Any]) -> str:
    """A line of JSON; a number that is not finite, which JSON cannot say, is null."""
    return json.dumps(_sayable(said), ensure_ascii=False, allow_nan=False)


def _sayable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _sayable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(one) for one in value]
    return value


def escaped(text: str) -> str:
    """A text that fits into a column: backslash, newline, carriage return and tab written as in Python."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def shown_name(name: str) -> str:
    """A file's name as it can be printed: Python keeps bytes that are not UTF-8 as halves of surrogate pairs."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def note_unknown(count: int, where: str) -> None:
    """Say on standard error how many tokens are unknown, if any are.

    Args:
        count: how many.
        where: what they are tokens of.
    """
    if count:
        print(f"note: {count} tokens of the {where} stand for what the model does not know", file=sys.stderr)
