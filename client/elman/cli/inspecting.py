"""`elman inspect`: what single units of a model's state do while it reads a text, in colours and in numbers."""

from __future__ import annotations

import asyncio
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from elman.analysis import Unit
from elman.cli.options import Server, Timeout, model_option
from elman.cli.printing import escaped, note_unknown, print_table
from elman.cli.reading import STANDARD_INPUT, read_text
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.features import features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BEST = 3
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_BLUE, _RED = (59, 111, 212), (214, 69, 65)


@dataclass(frozen=True)
class Reading:
    """What a model did while it read a text.

    Attributes:
        model: its name.
        digest: of its bundle.
        units: those that were watched.
        texts: of the steps; joined they are the text, as far as the model knows it.
        values: those of the units after each step, in the order of `units`; float32 rows where numpy is at hand.
    """

    model: str
    digest: str
    units: tuple[Unit, ...]
    texts: list[str]
    values: Sequence[Sequence[float] | NDArray[np.float32]]


@dataclass(frozen=True)
class Correlation:
    """How far a unit follows a feature.

    Attributes:
        feature: its name; see `elman.features`.
        unit: the unit's place in `Reading.units`.
        coefficient: Pearson's, -1 to 1.
    """

    feature: str
    unit: int
    coefficient: float


def inspect(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The file, in UTF-8.", show_default="standard input")
    ] = None,
    text: Annotated[str, typer.Option(help="The text itself, instead of a file.", show_default="none")] = "",
    model: Annotated[str, model_option("the server's only one")] = "",
    unit: Annotated[
        str,
        typer.Option(
            metavar="STATE:INDEX",
            help="The unit to draw: a state's input name, and a place in it, counted along the last axis first.",
            show_default="the one that correlates best with a feature",
        ),
    ] = "",
    page: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Draw into this HTML file, values on hover.", show_default="no file"
        ),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="List so many units for each feature.", show_default=f"{_BEST}, none beside --unit", min=1
        ),
    ] = None,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Draw a text in the colours of one unit's value: blue below 0, red above, the deeper the farther away.

    Without --unit it first lists the units that correlate best (Pearson) with features of the characters: inside
    quotes, inside a comment, indentation depth, position in line, after a space, digit; then it draws the best of them.
    Among thousands of units some follow any feature by chance: try another text. Features that do not change in the
    text are left out. Where standard output is no terminal, a line for each step says PIECE TAB VALUE (newline,
    carriage return, tab and backslash escaped). The text may be as long as one input of the server.
    """
    if file is not None and text:
        raise typer.BadParameter("a file and --text exclude each other")
    if unit and best is not None:
        raise typer.BadParameter(
            "--unit and --best exclude each other: the one draws a unit, the other searches for one"
        )
    chosen = _unit(unit) if unit else None
    if chosen is None:
        import numpy as np  # noqa: F401 # Whoever lacks it learns of it before anything is read.
    content = text or read_text(str(file) if file is not None else STANDARD_INPUT)
    reading = asyncio.run(_read(content, model, chosen, server, timeout))
    place = 0
    if chosen is None:
        found = best_units(reading, best or _BEST)
        if not found:
            raise typer.BadParameter("in this text no feature changes, or no unit does: a longer one is needed")
        _list(found, reading.units)
        place = max(found, key=lambda one: abs(one.coefficient)).unit
    values = [float(row[place]) for row in reading.values]
    # Before the drawing, which a reader such as `head` may break off.
    if page is not None:
        page.write_text(as_html(reading, reading.units[place], values), encoding="utf-8")
    _draw(reading.units[place], reading.texts, values)


def _unit(said: str) -> Unit:
    state, _, index = said.rpartition(":")
    if not state or not index.isdecimal():
        raise typer.BadParameter(f"--unit: {said!r} is not STATE:INDEX, like state.layer0.hidden:7")
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
    """The steps' texts with the characters that were given in the place of those that stand for unknown ones.

    Args:
        texts: of the steps, as the server tells them.
        text: what was read.

    Returns:
        Texts of the same lengths; those of the server where it is not plain what was read at which step, as with words.
    """
    joined = "".join(texts)
    if len(joined) != len(text) or any(told not in (given, _UNKNOWN) for told, given in zip(joined, text, strict=True)):
        return texts
    ends = list(accumulate(map(len, texts)))
    return [text[end - len(told) : end] for told, end in zip(texts, ends, strict=True)]


def _packed(values: Sequence[float]) -> NDArray[np.float32]:
    """As tuples all units of a long text would take eight times as much memory."""
    import numpy as np

    return np.array(values, dtype=np.float32)


def best_units(reading: Reading, count: int) -> list[Correlation]:
    """The units that follow each feature best, whether they rise or fall with it.

    A step of several characters has the features of its last one; a step without any, such as the begin token and all
    but the last byte of a character, is left out.

    Args:
        reading: what was read, with all units.
        count: how many for each feature.

    Returns:
        Feature by feature, the best one first; features and units that do not change are not among them.
    """
    import numpy as np

    steps = [place for place, text in enumerate(reading.texts) if text]
    if not steps:
        return []
    ends = np.cumsum([len(reading.texts[step]) for step in steps]) - 1
    values = np.stack([np.asarray(reading.values[step], dtype=np.float32) for step in steps])
    found: list[Correlation] = []
    for name, feature in features("".join(reading.texts)).items():
        coefficients = correlations(values, np.array(feature)[ends])
        order = np.argsort(-np.abs(coefficients), kind="stable")[:count]
        found += [Correlation(name, int(unit), float(coefficients[unit])) for unit in order if coefficients[unit]]
    return found


def correlations(values: NDArray[np.float32], feature: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's coefficient of each unit with a feature; 0 where one of them does not change or is not finite.

    Args:
        values: [steps, units].
        feature: [steps].

    Returns:
        [units], -1 to 1.
    """
    import numpy as np

    wanted = feature - feature.mean()
    means = values.mean(axis=0, dtype=np.float64)
    # Unit by unit, so that no second array of all values in double precision is made.
    found = np.zeros(values.shape[1])
    for unit, mean in enumerate(means):
        deviations = values[:, unit] - mean
        size = math.sqrt(float(deviations @ deviations) * float(wanted @ wanted))
        if size > 0 and math.isfinite(size) and np.ptp(values[:, unit]) > 0:
            found[unit] = float(deviations @ wanted) / size
    return found


def _list(found: list[Correlation], units: tuple[Unit, ...]) -> None:
    rows = [(one.feature, _name(units[one.unit]), f"{one.coefficient:+.3f}") for one in found]
    print_table(("feature", "unit", "correlation"), rows)
    print()


def _name(unit: Unit) -> str:
    return f"{unit.state}:{unit.index}"


def _draw(unit: Unit, texts: list[str], values: list[float]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        for text, value in zip(texts, values, strict=True):
            print(f"{escaped(text)}\t{value:.6g}")
        return
    scale = _scale(values)
    drawn = Text()
    for text, value in zip(texts, values, strict=True):
        drawn.append(_printable(text), f"black on rgb({','.join(map(str, colour(value, scale)))})")
    console.print(Text(f"{_name(unit)}, from {-scale:.3g} (blue) by 0 (white) to {scale:.3g} (red)"))
    console.print(drawn)


def _printable(text: str) -> str:
    """A terminal obeys some characters instead of showing them."""
    return "".join(character if character.isprintable() or character in "\n\t" else "·" for character in text)


def _scale(values: list[float]) -> float:
    """The value that has the deepest colour, below 0 and above."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0


def colour(value: float, scale: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255 each: white at 0 and where the value is no number.

    Args:
        value: the value.
        scale: above 0; where `value` is as far from 0, the colour is the deepest.
    """
    if math.isnan(value):
        return 255, 255, 255
    share = min(1.0, abs(value) / scale)
    red, green, blue = (round(255 + (end - 255) * share) for end in (_RED if value > 0 else _BLUE))
    return red, green, blue


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{unit}</title>
<style>
body {{ font: 16px/1.5 sans-serif; color: #000; background: #fff; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
pre {{ font: 14px/1.6 monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
.scale {{ display: flex; gap: 0.6em; align-items: center; }}
.bar {{ width: 16em; height: 1em; border: 1px solid #888; background: linear-gradient(to right, {low}, #fff, {high}); }}
</style>
<h1>{unit}</h1>
<p>A unit of the state of {model} <small>({digest})</small>, after each step of the text; hover over one to see its
value.</p>
<div class="scale">
<span>{least} (blue)</span><span class="bar"></span><span>{most} (red)</span><span>white: 0</span>
</div>
<pre>{steps}</pre>
</html>
"""


def as_html(reading: Reading, unit: Unit, values: list[float]) -> str:
    """A page that draws a text and needs nothing beside itself.

    Args:
        reading: what was read.
        unit: what is drawn of it.
        values: the unit's, one for each step.
    """
    scale = _scale(values)
    steps = []
    for text, value in zip(reading.texts, values, strict=True):
        # A newline has no place to hover over, so a sign stands before it.
        shown = html.escape(text).replace("\n", "↵\n")
        steps.append(f'<span title="{value:.6g}" style="background:{_hexadecimal(value, scale)}">{shown}</span>')
    return _PAGE.format(
        unit=html.escape(_name(unit)),
        model=html.escape(reading.model),
        digest=html.escape(reading.digest),
        low=_hexadecimal(-scale, scale),
        high=_hexadecimal(scale, scale),
        least=f"{-scale:.3g}",
        most=f"{scale:.3g}",
        steps="".join(steps),
    )


def _hexadecimal(value: float, scale: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour(value, scale))
