"""`elman models`, `classify` and `health`."""

from __future__ import annotations

import asyncio
import operator
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import groupby
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.text import Text
from tenacity import AsyncRetrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from elman.cli.in_order import answer_in_order
from elman.cli.options import Server, Timeout, model_option
from elman.cli.printing import escaped, print_table
from elman.cli.reading import standard_input, written_lines
from elman.cli.trees import classify_trees
from elman.client import Client, Model
from elman.connection import DEFAULT_ADDRESS
from elman.whole import Label, Prediction


def models(server: Server = DEFAULT_ADDRESS) -> None:
    """List the models of a server."""
    asyncio.run(_models(server))


async def _models(server: str) -> None:
    async with Client(server, timeout=10) as client:
        found = await client.list_models()
    print_table(
        ("model", "does", "provider", "running", "waiting", "digest", "description"),
        [
            (
                model.name,
                _what_it_does(model),
                model.provider,
                f"{model.running_count}/{model.slot_count}",
                f"{model.waiting_count}/{model.waiting_limit}",
                model.digest.removeprefix("sha256:")[:12],
                model.spec.description,
            )
            for model in found
        ],
    )


def _what_it_does(model: Model) -> str:
    spec = model.spec
    if any(output.HasField("next_token_logits") for output in spec.step.outputs):
        return "generate from a source" if spec.HasField("encoder") else "generate"
    return "classify trees" if spec.step.HasField("tree") else "classify"


def classify(
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Read standard input as one growing stream and answer every piece of it as it comes, instead of "
            "every line by itself.",
        ),
    ] = False,
    tree: Annotated[
        list[str] | None,
        typer.Option(
            help="A tree to label in the place of standard input, such as '(2 (2 It) (2 works))'; may be repeated. "
            "With - every line of standard input is one."
        ),
    ] = None,
    every_node: Annotated[
        bool, typer.Option("--every-node", help="Label every node of each tree, and draw it.")
    ] = False,
    model: Annotated[str, model_option("the only one with labels")] = "",
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Label standard input, every line by itself, or trees.

    A classifier answers a line with LABEL TAB PROBABILITY TAB LINE. A tagger colours it on a terminal; elsewhere it
    prints one PIECE TAB LABEL for every run of equal labels (newline, carriage return, tab and backslash escaped) and
    an empty line after each line, the format that `elman train --task tag` reads. With --follow a classifier answers
    every piece with LABEL TAB PROBABILITY of everything so far. A tree is answered with LABEL TAB PROBABILITY TAB TREE,
    the label of its root; every bracket of it begins with a label that is not looked at.
    """
    if every_node and not tree:
        raise typer.BadParameter("needs --tree", param_hint="--every-node")
    if tree:
        if follow:
            raise typer.BadParameter("does not go with --tree: a tree is read as a whole", param_hint="--follow")
        asyncio.run(classify_trees(tree, model, server, timeout, every_node=every_node))
        return
    asyncio.run(_classify(follow, model, server, timeout))


async def _classify(follow: bool, model: str, server: str, timeout: float | None) -> None:
    printer = _Printer()
    async with Client(server, timeout=timeout) as client, client.many() as many:
        if follow:
            sent: list[str] = []
            async for prediction in client.stream_classify(_recorded(standard_input(), sent), model=model):
                printer.show(sent.pop(0), prediction)
            return

        def show(line: str, prediction: Prediction) -> None:
            printer.show(line, prediction, end="\n")

        await answer_in_order(written_lines(), lambda line: many.classify(line, model=model), show)


async def _recorded(pieces: AsyncIterator[str], sent: list[str]) -> AsyncIterator[str]:
    async for piece in pieces:
        sent.append(piece)
        yield piece


_COLOURS = ("default", "green", "cyan", "magenta", "yellow", "blue", "red", "bright_black", "bright_green")


class _Printer:
    """Shows predictions: coloured text on a terminal, tab-separated lines elsewhere."""

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
            print(end=end, flush=True)  # Between two lines an empty one: each was a document of its own.
            return
        coloured = Text()
        for label, piece in _runs(text, steps):
            coloured.append(piece, self._colours.setdefault(label, _COLOURS[len(self._colours) % len(_COLOURS)]))
        self._console.print(coloured, end=end)


def _runs(text: str, steps: tuple[Label, ...]) -> Iterator[tuple[str, str]]:
    """Stretches of equal labels. A model that reads bytes labels each; a character takes its first byte's."""
    labels = [step.name for step in steps]
    if len(labels) != len(text):
        starts = [0]
        for character in text:
            starts.append(starts[-1] + len(character.encode()))
        if starts[-1] != len(labels):
            raise typer.BadParameter(
                f"it labels {len(labels)} words or subwords of {len(text)} characters, and does not say where each "
                "ends; what is shown here are labels of characters or bytes",
                param_hint="--model",
            )
        labels = [labels[start] for start in starts[:-1]]
    position = 0
    for label, group in groupby(labels):
        length = len(list(group))
        yield label, text[position : position + length]
        position += length


def health(
    server: Server = DEFAULT_ADDRESS,
    wait: Annotated[float, typer.Option(help="Seconds to wait for it; 0: ask once.", min=0)] = 0.0,
) -> None:
    """Tell whether a server serves: the exit status is 0 if it does, else 1."""
    if not asyncio.run(_serves(server, wait)):
        print(f"{server} does not serve", file=sys.stderr)
        raise typer.Exit(1)


async def _serves(server: str, wait: float) -> bool:
    """Ask until the server is serving or the time is up.

    Args:
        server: host and port.
        wait: seconds; 0 asks once.
    """
    async with grpc.aio.insecure_channel(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def is_serving() -> bool:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=3)  # type: ignore[attr-defined]
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        asking = AsyncRetrying(
            retry=retry_if_exception_type(grpc.aio.AioRpcError) | retry_if_result(operator.not_),
            wait=wait_fixed(0.1),
            stop=stop_after_delay(wait),
            retry_error_callback=lambda _: False,
        )
        return await asking(is_serving)
