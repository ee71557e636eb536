"""`elman inspect`: the values of single units of a model's state while it reads a text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elman.analysis_results import Unit
from elman.cli.options import Server, Timeout, model_option
from elman.cli.printing import note_unknown, print_table
from elman.cli.reading import STANDARD_INPUT, read_text
from elman.cli.unit_correlations import Correlation, Reading, best_units
from elman.cli.unit_drawing import as_html, draw, unit_name
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BEST = 3
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def inspect(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Text file in UTF-8.", show_default="standard input")
    ] = None,
    text: Annotated[str, typer.Option(help="Text to read instead of a file.", show_default="none")] = "",
    model: Annotated[str, model_option("the server's only one")] = "",
    unit: Annotated[
        str,
        typer.Option(
            metavar="STATE:INDEX",
            help="Unit to draw: the input name of a state, and an index in row-major order.",
            show_default="the one with the strongest correlation",
        ),
    ] = "",
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also draw into this HTML file.", show_default="none"),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of units to list for each feature.",
            show_default=f"{_BEST}, none with --unit",
            min=1,
        ),
    ] = None,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Draw a text in the colours of one unit's value: blue below 0, red above.

    Without --unit, first list the units with the strongest correlation (Pearson) with features of the characters:
    inside quotes, inside a comment, indentation depth, position in line, after a space, digit. Features that do not
    change in the text are left out. Among thousands of units, some follow any feature by chance, so try another text.
    If standard output is not a terminal, each step is a line PIECE TAB VALUE (newline, carriage return, tab and
    backslash escaped). The text may be as long as one input of the server.
    """
    if file is not None and text:
        raise typer.BadParameter("FILE and --text exclude each other")
    if unit and best is not None:
        raise typer.BadParameter("--unit and --best exclude each other")
    chosen = _parse_unit(unit) if unit else None
    if chosen is None:
        import numpy as np  # noqa: F401 # A missing extra is reported before anything is read.
    content = text or read_text(str(file) if file is not None else STANDARD_INPUT)
    reading = asyncio.run(_read(content, model, chosen, server, timeout))
    index = 0
    if chosen is None:
        found = best_units(reading, best or _BEST)
        if not found:
            raise typer.BadParameter("no feature or no unit changes in this text; a longer one is needed")
        _list(found, reading.units)
        index = max(found, key=lambda correlation: abs(correlation.coefficient)).unit
    values = [float(row[index]) for row in reading.values]
    # Before the drawing, which a reader such as `head` may interrupt.
    if page is not None:
        page.write_text(as_html(reading, reading.units[index], values), encoding="utf-8")
    draw(reading.units[index], reading.texts, values)


def _parse_unit(text: str) -> Unit:
    state, _, index = text.rpartition(":")
    if not state or not index.isdecimal():
        raise typer.BadParameter(f"--unit: got {text!r}; it must be STATE:INDEX, like state.layer0.hidden:7")
    return Unit(state, int(index))


async def _read(text: str, model: str, unit: Unit | None, server: str, timeout: float | None) -> Reading:
    texts: list[str] = []
    values: list[Sequence[float] | NDArray[np.float32]] = []
    async with Client(server, timeout=timeout) as client:
        stream = client.inspect(text, model=model, units={unit.state: [unit.index]} if unit else None)
        async for step in stream:
            texts.append(step.text)
            values.append(step.values if unit else _packed(step.values))
    note_unknown(stream.unknown_token_count, "text")
    return Reading(stream.model, stream.digest, stream.units, as_given(texts, text), values)


def as_given(texts: list[str], text: str) -> list[str]:
    """The texts of the steps with the given characters in place of the signs for unknown ones.

    Args:
        texts: the texts of the steps, as the server returns them.
        text: the text that was read.

    Returns:
        Texts of the same lengths; the server's if it is not clear which characters a step has read, as with words.
    """
    joined = "".join(texts)
    if len(joined) != len(text) or any(
        returned not in (given, _UNKNOWN) for returned, given in zip(joined, text, strict=True)
    ):
        return texts
    ends = list(accumulate(map(len, texts)))
    return [text[end - len(returned) : end] for returned, end in zip(texts, ends, strict=True)]


def _packed(values: Sequence[float]) -> NDArray[np.float32]:
    """An array, because tuples of all units of a long text would take eight times the memory."""
    import numpy as np

    return np.array(values, dtype=np.float32)


def _list(found: list[Correlation], units: tuple[Unit, ...]) -> None:
    rows = [(entry.feature, unit_name(units[entry.unit]), f"{entry.coefficient:+.3f}") for entry in found]
    print_table(("feature", "unit", "correlation"), rows)
    print()
