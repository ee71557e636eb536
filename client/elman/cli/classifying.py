"""`elman classify`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from elman.cli.options import Server, Timeout, model_option
from elman.cli.ordered_requests import answer_in_order
from elman.cli.printing import escaped, note_unknown
from elman.cli.reading import input_lines, standard_input
from elman.cli.tree_labelling import classify_trees
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.label_results import Label, Prediction

_COLOURS = ("default", "green", "cyan", "magenta", "yellow", "blue", "red", "bright_black", "bright_green")


def classify(
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Read standard input as one growing stream, and label it as it arrives."),
    ] = False,
    tree: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S-EXPRESSION",
            help="Label a tree, such as '(2 (2 It) (2 works))', instead of standard input; repeatable. - reads one "
            "tree from each line of standard input.",
        ),
    ] = None,
    every_node: Annotated[
        bool, typer.Option("--every-node", help="Label every node of each tree, and draw the tree.")
    ] = False,
    model: Annotated[str, model_option("the only one with labels")] = "",
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Label each line of standard input, or trees.

    A classifier prints LABEL TAB PROBABILITY TAB LINE. A tagger colours the line on a terminal; otherwise it prints
    PIECE TAB LABEL for each run of equal labels (newline, carriage return, tab and backslash escaped) and an empty line
    after each line, the format that `elman train --task tag` reads. With --follow, a classifier prints LABEL TAB
    PROBABILITY of everything so far. A tree prints LABEL TAB PROBABILITY TAB TREE, the label of its root; the labels
    in the given tree are ignored.
    """
    if every_node and not tree:
        raise typer.BadParameter("needs --tree", param_hint="--every-node")
    if tree:
        if follow:
            raise typer.BadParameter("excludes --tree: a tree is read as a whole", param_hint="--follow")
        asyncio.run(classify_trees(tree, model, server, timeout, every_node=every_node))
        return
    asyncio.run(_classify(follow, model, server, timeout))


async def _classify(follow: bool, model: str, server: str, timeout: float | None) -> None:
    printer, unknown = _Printer(), 0
    async with Client(server, timeout=timeout) as client, client.many() as many:
        if follow:
            sent: list[str] = []
            async for prediction in client.stream_classify(_recorded(standard_input(), sent), model=model):
                printer.show(sent.pop(0), prediction)
                unknown += prediction.unknown_token_count
        else:

            def show(line: str, prediction: Prediction) -> None:
                nonlocal unknown
                printer.show(line, prediction, end="\n")
                unknown += prediction.unknown_token_count

            await answer_in_order(input_lines(), lambda line: many.classify(line, model=model), show)
    note_unknown(unknown, "input")


async def _recorded(pieces: AsyncIterator[str], sent: list[str]) -> AsyncIterator[str]:
    async for piece in pieces:
        sent.append(piece)
        yield piece


class _Printer:
    """Prints predictions: coloured text on a terminal, tab-separated lines otherwise."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._colours: dict[str, str] = {}

    def show(self, text: str, prediction: Prediction, end: str = "") -> None:
        if prediction.steps:
            self._show_steps(text, prediction.steps, end)
        elif prediction.labels:
            best = prediction.labels[0]
            line = text.rstrip("\n") if end else ""
            print(f"{best.name}\t{best.probability:.4f}" + (f"\t{line}" if end else ""), flush=True)

    def _show_steps(self, text: str, steps: tuple[Label, ...], end: str) -> None:
        if not self._console.is_terminal:
            for label, piece in _runs(text, steps):
                print(f"{escaped(piece)}\t{label}", flush=True)
            print(end=end, flush=True)  # An empty line between two lines, because each is a document.
            return
        coloured = Text()
        for label, piece in _runs(text, steps):
            coloured.append(piece, self._colours.setdefault(label, _COLOURS[len(self._colours) % len(_COLOURS)]))
        self._console.print(coloured, end=end)


def _runs(text: str, steps: tuple[Label, ...]) -> Iterator[tuple[str, str]]:
    """Runs of equal labels with their text. With bytes as tokens, a character has the label of its first byte."""
    labels = [step.name for step in steps]
    if len(labels) != len(text):
        starts = [0]
        for character in text:
            starts.append(starts[-1] + len(character.encode()))
        if starts[-1] != len(labels):
            raise typer.BadParameter(
                f"got {len(labels)} labels of words or subwords for {len(text)} characters, without their positions; "
                "only labels of characters or bytes can be shown",
                param_hint="--model",
            )
        labels = [labels[start] for start in starts[:-1]]
    position = 0
    for label, group in groupby(labels):
        length = len(list(group))
        yield label, text[position : position + length]
        position += length
