"""The picture of a stream in the README: an animated SVG of what a real server sends, when it sends it.

`python -m docs.generate.recording` records the two models of `make run`, which must be running, into
docs/images/stream.svg. `ELMAN_SERVER` names another server.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from elman import Client
from elman.connection import DEFAULT_ADDRESS

_PICTURE = Path(__file__).parents[1] / "images" / "stream.svg"
_PROMPT, _MAX_TOKENS, _TEMPERATURE, _SEED = "def read(self, ", 400, 0.75, 1
_SOURCE = '''\
def area(radius):
    """Of a circle."""
    return 3.14 * radius ** 2  # roughly
'''
_SLOWER = 8  # A stream lasts less than a second, too short to be watched.
_PAUSE = 0.8  # seconds between the two commands, as shown
_SENT_EVERY = 0.003  # seconds between the characters that are sent to be labelled

# Sizes in pixels; a character of most monospaced fonts is 0.6 times as wide as it is high.
_WIDTH, _MARGIN, _TOP, _LINE, _CHARACTER = 860, 20, 54, 20, 8.4
_TEXT, _COMMAND, _NOTE = "#e6e6e6", "#8fbcff", "#9a9aa5"
_COLOURS = ("#e6e6e6", "#7ee787", "#79c0ff", "#d2a8ff", "#ffd866", "#ff9e64", "#ff7b72", "#9a9aa5", "#a5f3c4")

_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>{title}</title>
<style>
text {{ font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre; }}
@keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
.later {{ animation: appear 1ms backwards; }}
@media (prefers-reduced-motion: reduce) {{ .later {{ animation: none }} }}
</style>
<rect width="{width}" height="{height}" rx="10" fill="#1c1c26"/>
<circle cx="22" cy="20" r="6" fill="#ff5f57"/><circle cx="42" cy="20" r="6" fill="#febc2e"/>
<circle cx="62" cy="20" r="6" fill="#28c840"/>
{texts}
</svg>
"""


@dataclass(frozen=True)
class Piece:
    """A piece of text.

    Attributes:
        seconds: when it came, from the start of its stream.
        text: may hold newlines.
        colour: of the text.
    """

    seconds: float
    text: str
    colour: str = _TEXT


async def _generated(client: Client) -> list[Piece]:
    """A stream of `elman generate`, behind its prompt."""
    began = time.perf_counter()
    stream = client.generate(_PROMPT, max_tokens=_MAX_TOKENS, temperature=_TEMPERATURE, seed=_SEED)
    return [Piece(0.0, _PROMPT)] + [Piece(time.perf_counter() - began, chunk.text) async for chunk in stream]


async def _labelled(client: Client) -> list[Piece]:
    """A stream of `elman classify --follow`: each character coloured by its label."""
    began, pieces, colours = time.perf_counter(), [], dict[str, str]()

    async def characters() -> AsyncIterator[str]:
        for character in _SOURCE:
            await asyncio.sleep(_SENT_EVERY)
            yield character

    position = 0
    async for prediction in client.stream_classify(characters()):
        seconds = time.perf_counter() - began
        for name, group in groupby(step.name for step in prediction.steps):
            end = position + len(list(group))
            colour = colours.setdefault(name, _COLOURS[len(colours) % len(_COLOURS)])
            pieces.append(Piece(seconds, _SOURCE[position:end], colour))
            position = end
    return pieces


class _Screen:
    """Places pieces on lines, as a terminal does, and draws them."""

    def __init__(self) -> None:
        self._line = self._column = 0
        self._texts: list[str] = []

    def write(self, seconds: float, text: str, colour: str = _TEXT) -> None:
        """Draw a text that appears after a time."""
        for part in text.splitlines(keepends=True):
            shown = part.rstrip("\n")
            indent = len(shown) - len(shown.lstrip(" "))
            if shown.strip():
                self._texts.append(self._drawn(seconds, shown.strip(" "), indent, colour))
            self._column += len(shown)
            if part.endswith("\n"):
                self._line, self._column = self._line + 1, 0

    def _drawn(self, seconds: float, text: str, indent: int, colour: str) -> str:
        x = _MARGIN + (self._column + indent) * _CHARACTER
        y = _TOP + self._line * _LINE
        later = f' class="later" style="animation-delay:{seconds:.2f}s"' if seconds else ""
        place = f'x="{x:.1f}" y="{y}" textLength="{len(text) * _CHARACTER:.1f}" lengthAdjust="spacingAndGlyphs"'
        return f'<text {place} fill="{colour}"{later}>{escape(text)}</text>'

    def picture(self, title: str) -> str:
        height = _TOP + self._line * _LINE + _MARGIN
        return _SVG.format(width=_WIDTH, height=height, title=escape(title), texts="\n".join(self._texts))


def _draw(generated: list[Piece], labelled: list[Piece]) -> str:
    """Both streams, one after the other."""
    screen = _Screen()
    options = f"--max-tokens {_MAX_TOKENS} --temperature {_TEMPERATURE} --seed {_SEED}"
    screen.write(0, f'$ elman generate "{_PROMPT}" {options}\n', _COMMAND)
    for piece in _shown(generated, 0):
        screen.write(piece.seconds, piece.text, piece.colour)
    first, last = generated[1].seconds, generated[-1].seconds
    start = last * _SLOWER
    screen.write(start, f"\n\n[first token after {1000 * first:.0f} ms, {_MAX_TOKENS} after {last:.2f} s]\n\n", _NOTE)
    start += _PAUSE
    screen.write(start, "$ elman classify --follow < example.py\n", _COMMAND)
    for piece in _shown(labelled, start):
        screen.write(piece.seconds, piece.text, piece.colour)
    start += labelled[-1].seconds * _SLOWER
    note = f"recorded from a server on two cores, played {_SLOWER} times slower"
    screen.write(start, f"\n{note}", _NOTE)
    return screen.picture(
        "Two streams from elman: a model writes Python source, another one colours source as it arrives"
    )


def _shown(pieces: list[Piece], start: float) -> Iterator[Piece]:
    for piece in pieces:
        yield Piece(start + piece.seconds * _SLOWER if piece.seconds else 0, piece.text, piece.colour)


async def main() -> None:
    async with Client(os.environ.get("ELMAN_SERVER", DEFAULT_ADDRESS)) as client:
        await client.generate(_PROMPT, max_tokens=8).text()  # Connects.
        generated = await _generated(client)
        labelled = await _labelled(client)
    _PICTURE.write_text(_draw(generated, labelled), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
