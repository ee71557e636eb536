"""`elman classify --tree`: trees in, labels of their roots out, or of every node, drawn."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from elman.cli.in_order import answer_in_order
from elman.cli.reading import STANDARD_INPUT, written_lines
from elman.client import Client
from elman.whole import Label, Prediction

_PIECE = re.compile(r"[()]|[^() \t\r\n]+")
_WITHOUT_TERMINAL = 300  # columns


async def classify_trees(
    trees: Sequence[str], model: str, server: str, timeout: float | None, *, every_node: bool
) -> None:
    """Label trees and print what comes of each, in their order.

    Args:
        trees: s-expressions; "-" in the place of one stands for every line of standard input.
        model: its name, or "".
        server: its address.
        timeout: seconds that each may take.
        every_node: draw each with a label at every node, instead of a line for its root.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WITHOUT_TERMINAL)

    def show(tree: str, prediction: Prediction) -> None:
        if every_node:
            console.print(drawn(tree, prediction.steps))
        else:
            best = prediction.labels[0]
            print(f"{best.name}\t{best.probability:.4f}\t{tree}", flush=True)

    async with Client(server, timeout=timeout) as client, client.many() as many:

        async def ask(tree: str) -> Prediction:
            return await many.classify(tree=tree, model=model, every_node=every_node)

        await answer_in_order(_each(trees), ask, show)


async def _each(trees: Sequence[str]) -> AsyncIterator[str]:
    for tree in trees:
        if tree != STANDARD_INPUT:
            yield tree
        else:
            async for line in written_lines():
                yield line


def drawn(tree: str, labels: Sequence[Label]) -> Tree:
    """A tree with its labels.

    Args:
        tree: an s-expression that the server has taken.
        labels: one for every node, in the order of the opening brackets.
    """
    left = iter(labels)
    root = Tree("", hide_root=True)
    path, said = [root], list[Text]()
    pieces = _PIECE.findall(tree)
    for place, piece in enumerate(pieces):
        if piece == "(":
            label = next(left)
            said.append(Text.assemble((label.name, "bold"), f" {label.probability:.2f}"))
            path.append(path[-1].add(said[-1]))
        elif piece == ")":
            path.pop()
            said.pop()
        elif pieces[place - 1] != "(":  # Behind a bracket stands the label that it came with.
            said[-1].append(f"  {piece}", "cyan")
    return root
