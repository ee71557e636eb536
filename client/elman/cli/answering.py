"""`elman translate` and `elman ask`: models with an encoder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from elman.cli.options import Model, Server, Timeout
from elman.cli.ordered_requests import answer_in_order
from elman.cli.printing import json_line, note_unknown, print_table
from elman.cli.reading import input_lines
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.errors import InvalidRequestError
from elman.generation_results import Continuation
from elman.unary_calls import UnaryCalls

_BEAMS = 5
_SHOWN = 60  # characters of a text in an error message

Beams = Annotated[int, typer.Option(help="Number of beams; 1 takes the most probable token at each step.", min=1)]
MaxTokens = Annotated[int, typer.Option(help="Largest number of tokens to write.", min=1)]


@dataclass(frozen=True)
class _Writing:
    """How a target is written for a source."""

    model: str
    beams: int
    max_tokens: int
    length_penalty: float = 1.0

    async def write(self, client: UnaryCalls, source: str) -> Continuation:
        """Write the target of a source.

        Raises:
            InvalidRequestError: the server refused the request. The message quotes the source.
        """
        try:
            if self.beams == 1:
                (found,) = await client.sample(
                    source=source, count=1, model=self.model, temperature=0, max_tokens=self.max_tokens
                )
            else:
                (found,) = await client.search(
                    source=source,
                    width=self.beams,
                    length_penalty=self.length_penalty,
                    model=self.model,
                    max_tokens=self.max_tokens,
                )
        except InvalidRequestError as error:
            quoted = source if len(source) <= _SHOWN else source[:_SHOWN] + "..."
            raise type(error)(
                f"{quoted!r}: {error}",
                code=error.code,
                reason=error.reason,
                metadata=error.metadata,
                fields=error.fields,
            ) from error
        return found


def translate(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts to read, each separately: sentences to translate, words to pronounce.",
            show_default="each line of standard input",
        ),
    ] = None,
    model: Model = "",
    beams: Beams = _BEAMS,
    length_penalty: Annotated[
        float,
        typer.Option(help="Exponent of the length that divides a beam's score; larger values favour longer texts."),
    ] = 1.0,
    max_tokens: MaxTokens = 256,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object for each text, with source, text, token_ids and score."),
    ] = False,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Translate texts with an encoder-decoder, one line for each, in their order."""
    asyncio.run(_translate(texts, _Writing(model, beams, max_tokens, length_penalty), as_json, server, timeout))


async def _translate(
    texts: Sequence[str] | None, writing: _Writing, as_json: bool, server: str, timeout: float | None
) -> None:
    unknown = 0

    def show(text: str, found: Continuation | None) -> None:
        nonlocal unknown
        if found is not None:
            unknown += found.source_unknown_count
        if not as_json:
            print("" if found is None else found.text, flush=True)
        elif found is not None:
            content = {"source": text, "text": found.text, "token_ids": found.token_ids, "score": found.score}
            print(json_line(content), flush=True)

    async with Client(server, timeout=timeout) as client, client.many() as many:

        async def request(text: str) -> Continuation | None:
            if not text.strip():
                return None  # A blank line stays one, so that the lines of both files correspond.
            return await writing.write(many, text)

        await answer_in_order(_each(texts) if texts else input_lines(blank=True), request, show)
    note_unknown(unknown, "source")


async def _each(texts: Sequence[str]) -> AsyncIterator[str]:
    for text in texts:
        yield text


def ask(
    passage: Annotated[
        str, typer.Argument(metavar="PASSAGE", help="Text that the question is about.", show_default=False)
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Question.", show_default=False)],
    choice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Answer to choose from; give two or more.",
            show_default="none: the model writes the answer",
        ),
    ] = None,
    model: Model = "",
    beams: Beams = _BEAMS,
    max_tokens: MaxTokens = 64,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a JSON object with text and score, or with text and the choices' probabilities."
        ),
    ] = False,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Answer a question about a passage; the model writes the answer or chooses one.

    The model's encoder reads the passage and the question, joined by a space.
    """
    source = f"{passage} {question}"
    if choice is None:
        asyncio.run(_write_answer(source, _Writing(model, beams, max_tokens), as_json, server, timeout))
    else:
        if len(choice) < 2:
            raise typer.BadParameter("--choice: got one; two or more are needed")
        asyncio.run(_choose_answer(source, choice, model, as_json, server, timeout))


async def _write_answer(source: str, writing: _Writing, as_json: bool, server: str, timeout: float | None) -> None:
    async with Client(server, timeout=timeout) as client:
        found = await writing.write(client, source)
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
        content = [
            {"text": text, "probability": score.probability, "log_likelihood": score.log_likelihood}
            for text, score in scored
        ]
        print(json_line({"text": choices[found.index], "choices": content}))
        return
    scored.sort(key=lambda entry: -entry[1].probability)
    rows = [(text, f"{score.probability:.4f}", f"{score.log_likelihood:.4f}") for text, score in scored]
    print_table(("answer", "probability", "log-likelihood"), rows)
