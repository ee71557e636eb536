"""`elman classify --tree`: the labels of roots as lines, or of all nodes as drawings."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from elman.cli.ordered_requests import answer_in_order
from elman.cli.printing import note_unknown
from elman.cli.reading import STANDARD_INPUT, input_lines
from elman.client import Client
from elman.label_results import Label, Prediction

_PIECE = re.compile(r"[()]|[^() \t\r\n]+")
_WIDTH_WITHOUT_TERMINAL = 300  # columns


async def classify_trees(
    trees: Sequence[str], model: str, server: str, timeout: float | None, *, every_node: bool
) -> None:
    """Label trees and print the results in their order.

    Args:
        trees: s-expressions; "-" stands for one on each line of standard input.
        model: the model's name, or "".
        server: the server's address.
        timeout: the time limit for each tree in seconds.
        every_node: draw each tree with a label at every node, instead of a line for its root.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)

    unknown = 0

    def show(tree: str, prediction: Prediction) -> None:
        nonlocal unknown
        unknown += prediction.unknown_token_count
        if every_node:
            console.print(drawn(tree, prediction.steps))
        else:
            best = prediction.labels[0]
            print(f"{best.name}\t{best.probability:.4f}\t{tree}", flush=True)

    async with Client(server, timeout=timeout) as client, client.many() as many:

        async def request(tree: str) -> Prediction:
            return await many.classify(tree=tree, model=model, every_node=every_node)

        await answer_in_order(_each(trees), request, show)
    note_unknown(unknown, "trees")


async def _each(trees: Sequence[str]) -> AsyncIterator[str]:
    for tree in trees:
        if tree != STANDARD_INPUT:
            yield tree
        else:
            async for line in input_lines():
                yield line


def drawn(tree: str, labels: Sequence[Label]) -> Tree:
    """A drawing of a tree with its labels.

    Args:
        tree: an s-expression that the server has accepted.
        labels: the label of each node, in the order of the opening brackets.
    """
    remaining = iter(labels)
    root = Tree("", hide_root=True)
    path, texts = [root], list[Text]()
    pieces = _PIECE.findall(tree)
    for index, piece in enumerate(pieces):
        if piece == "(":
            label = next(remaining)
            texts.append(Text.assemble((label.name, "bold"), f" {label.probability:.2f}"))
            path.append(path[-1].add(texts[-1]))
        elif piece == ")":
            path.pop()
            texts.pop()
        elif pieces[index - 1] != "(":  # After a bracket, the piece is the given label.
            texts[-1].append(f"  {piece}", "cyan")
    return root
