"""The options that several commands have."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer


def _number(value: float | None) -> float | None:
    # The ranges of older typers that we allow (0.20 is one) let through nan, which compares with nothing.
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is no number of seconds")
    return value


Server = Annotated[str, typer.Option("--server", help="HOST:PORT of the server.", envvar="ELMAN_SERVER")]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds the call may take.", show_default="as long as it takes", min=0.001, callback=_number),
]


def model_option(default: str) -> Any:
    """The option --model.

    Args:
        default: which model it is where none is named.
    """
    return typer.Option(help="The model's name.", show_default=default)
