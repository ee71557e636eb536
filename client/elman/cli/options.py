"""The options that several commands have."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer


def _check_number(value: float | None) -> float | None:
    # The ranges of older versions of typer that are supported, such as 0.20, accept NaN.
    if value is not None and math.isnan(value):
        raise typer.BadParameter("got nan; it must be a number of seconds")
    return value


Server = Annotated[
    str, typer.Option("--server", metavar="HOST:PORT", help="Address of the server.", envvar="ELMAN_SERVER")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Time limit of the call.",
        show_default="none",
        min=0.001,
        callback=_check_number,
    ),
]


def model_option(default: str) -> Any:
    """The option --model.

    Args:
        default: what the default is, for the help.
    """
    return typer.Option(metavar="NAME", help="Model to use.", show_default=default)


Model = Annotated[str, model_option("the only one that generates")]
