"""`elman translate` and `elman ask`: models that read something as a whole before they write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import typer

from elman.cli.in_order import answer_in_order
from elman.cli.options import Server, Timeout, model_option
from elman.cli.printing import json_line, note_unknown, print_table
from elman.cli.reading import written_lines
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.decoding import Continuation
from elman.errors import InvalidRequestError
from elman.whole import WholeCalls

_WITH_ENCODER = "the only one that generates"
_BEAMS = 5
_SHOWN = 60  # characters of a text that is complained of

Beams = Annotated[int, typer.Option(help="Beginnings that are kept side by side; 1: the most probable token.", min=1)]
MaxTokens = Annotated[int, typer.Option(help="The largest number of tokens to write.", min=1)]


def translate(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="What is read, each text by itself: a sentence to translate, a word to spell.",
            show_default="every line of standard input",
        ),
    ] = None,
    model: Annotated[str, model_option(_WITH_ENCODER)] = "",
    beams: Beams = _BEAMS,
    length_penalty: Annotated[
        float, typer.Option(help="The exponent of the length that divides the score of a beam.")
    ] = 1.0,
    max_tokens: MaxTokens = 256,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a text: source, text, token_ids, score (of --beams).")
    ] = False,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Have an encoder-decoder read texts and write what it makes of each, a line a text, in their order."""
    asyncio.run(_translate(texts, model, beams, length_penalty, max_tokens, as_json, server, timeout))


async def _translate(
    texts: Sequence[str] | None,
    model: str,
    beams: int,
    length_penalty: float,
    max_tokens: int,
    as_json: bool,
    server: str,
    timeout: float | None,
) -> None:
    unknown = 0

    def show(text: str, found: Continuation | None) -> None:
        nonlocal unknown
        if found is not None:
            unknown += found.source_unknown_count
        if not as_json:
            print("" if found is None else found.text, flush=True)
        elif found is not None:
            said = {"source": text, "text": found.text, "token_ids": found.token_ids, "score": found.score}
            print(json_line(said), flush=True)

    async with Client(server, timeout=timeout) as client, client.many() as many:

        async def ask(text: str) -> Continuation | None:
            if not text.strip():
                return None  # A line stays a line, so that both files can be laid side by side.
            return await _written(many, text, model, beams, length_penalty, max_tokens)

        await answer_in_order(_each(texts) if texts else written_lines(blank=True), ask, show)
    note_unknown(unknown, "source")


async def _each(texts: Sequence[str]) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def _written(
    client: WholeCalls, source: str, model: str, beams: int, length_penalty: float, max_tokens: int
) -> Continuation:
    try:
        if beams == 1:
            (found,) = await client.sample(source=source, count=1, model=model, temperature=0, max_tokens=max_tokens)
        else:
            (found,) = await client.search(
                source=source, width=beams, length_penalty=length_penalty, model=model, max_tokens=max_tokens
            )
    except InvalidRequestError as error:
        shown = source if len(source) <= _SHOWN else source[:_SHOWN] + "..."
        raise type(error)(
            f"{shown!r}: {error}", code=error.code, reason=error.reason, metadata=error.metadata, fields=error.fields
        ) from error
    return found


def ask(
    passage: Annotated[str, typer.Argument(help="What the question is about.", show_default=False)],
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    choice: Annotated[
        list[str] | None,
        typer.Option(help="An answer to choose among; given twice or more often.", show_default="the model writes one"),
    ] = None,
    model: Annotated[str, model_option(_WITH_ENCODER)] = "",
    beams: Beams = _BEAMS,
    max_tokens: MaxTokens = 64,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a JSON object: text and score (of --beams), or with --choice: text, and choices with text, "
            "probability and log_likelihood each.",
        ),
    ] = False,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Ask a question about a passage; the model writes the answer, or chooses it among some.

    The passage and the question, joined by a space, are what the model's encoder reads.
    """
    source = f"{passage} {question}"
    if choice is None:
        asyncio.run(_write_answer(source, model, beams, max_tokens, as_json, server, timeout))
    else:
        if len(choice) < 2:
            raise typer.BadParameter("--choice is given once, but there must be two or more to choose among")
        asyncio.run(_choose_answer(source, choice, model, as_json, server, timeout))


async def _write_answer(
    source: str, model: str, beams: int, max_tokens: int, as_json: bool, server: str, timeout: float | None
) -> None:
    async with Client(server, timeout=timeout) as client:
        found = await _written(client, source, model, beams, 1.0, max_tokens)
    print(json_line({"text": found.text, "score": found.score}) if as_json else found.text)
    note_unknown(found.source_unknown_count, "passage and question")


async def _choose_answer(
    source: str, choices: Sequence[str], model: str, as_json: bool, server: str, timeout: float | None
) -> None:
    async with Client(server, timeout=timeout) as client:
        found = await client.choose(choices, source=source, model=model)
    note_unknown(found.source_unknown_count, "passage and question")
    note_unknown(sum(score.unknown_token_count for score in found.scores), "choices")
    scored = list(zip(choices, found.scores, strict=True))
    if as_json:
        said = [
            {"text": text, "probability": score.probability, "log_likelihood": score.log_likelihood}
            for text, score in scored
        ]
        print(json_line({"text": choices[found.index], "choices": said}))
        return
    scored.sort(key=lambda one: -one[1].probability)
    rows = [(text, f"{score.probability:.4f}", f"{score.log_likelihood:.4f}") for text, score in scored]
    print_table(("answer", "probability", "log-likelihood"), rows)
