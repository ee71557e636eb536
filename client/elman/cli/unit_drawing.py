"""Drawings of a text in the colours of a unit's value, on a terminal and as HTML."""

from __future__ import annotations

import html
import math

from rich.console import Console
from rich.text import Text

from elman.analysis_results import Unit
from elman.cli.printing import escaped
from elman.cli.unit_correlations import Reading

_BLUE, _RED = (59, 111, 212), (214, 69, 65)


def unit_name(unit: Unit) -> str:
    return f"{unit.state}:{unit.index}"


def draw(unit: Unit, texts: list[str], values: list[float]) -> None:
    """Print each step in the colour of its value on a terminal, or as PIECE TAB VALUE otherwise."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        for text, value in zip(texts, values, strict=True):
            print(f"{escaped(text)}\t{value:.6g}")
        return
    scale = _scale(values)
    drawn = Text()
    for text, value in zip(texts, values, strict=True):
        drawn.append(_printable(text), f"black on rgb({','.join(map(str, colour(value, scale)))})")
    console.print(Text(f"{unit_name(unit)}, from {-scale:.3g} (blue) through 0 (white) to {scale:.3g} (red)"))
    console.print(drawn)


def _printable(text: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() or character in "\n\t" else "·" for character in text)


def _scale(values: list[float]) -> float:
    """The magnitude with the deepest colour."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0


def colour(value: float, scale: float) -> tuple[int, int, int]:
    """The colour of a value: red, green and blue, 0 to 255 each; white for 0 and NaN.

    Args:
        value: the value.
        scale: the magnitude with the deepest colour, above 0.
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
<p>A unit of the state of {model} <small>({digest})</small>, after each step of the text; hover over a step to see its
value.</p>
<div class="scale">
<span>{least} (blue)</span><span class="bar"></span><span>{most} (red)</span><span>white: 0</span>
</div>
<pre>{steps}</pre>
</html>
"""


def as_html(reading: Reading, unit: Unit, values: list[float]) -> str:
    """A self-contained HTML page with the drawing.

    Args:
        reading: what was read.
        unit: the unit that is drawn.
        values: the values of the unit, one for each step.
    """
    scale = _scale(values)
    steps = []
    for text, value in zip(reading.texts, values, strict=True):
        # A sign before each newline, which alone has no area to hover over.
        shown = html.escape(text).replace("\n", "↵\n")
        steps.append(f'<span title="{value:.6g}" style="background:{_hexadecimal(value, scale)}">{shown}</span>')
    return _PAGE.format(
        unit=html.escape(unit_name(unit)),
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
