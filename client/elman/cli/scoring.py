"""`elman score`: how probable a model holds files, each by itself and all together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from elman.analysis import Likelihood, Score
from elman.cli.options import Server, Timeout, model_option
from elman.cli.printing import json_line, print_table, shown_name
from elman.cli.reading import STANDARD_INPUT, read_text, shown_input
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.errors import ElmanError, InvalidRequestError

_LONGEST_PIECE = 500_000  # characters, with which a piece fits into a message of the default limit
_LONGEST_OVERLAP = 4096  # characters


@dataclass(frozen=True)
class FileScore(Likelihood):
    """How probable a file is, or several together.

    Attributes:
        piece_count: in how many pieces it was scored.
    """

    piece_count: int

    @classmethod
    def of_pieces(cls, pieces: Iterable[Score]) -> FileScore:
        """The score of a file from those of its pieces."""
        return cls.sum(cls(piece.log_likelihood, piece.token_count, piece.unknown_token_count, 1) for piece in pieces)

    @classmethod
    def sum(cls, scores: Iterable[FileScore]) -> FileScore:
        """The score of all of them together, each token counting the same."""
        found = list(scores)
        return cls(
            log_likelihood=math.fsum(score.log_likelihood for score in found),
            token_count=sum(score.token_count for score in found),
            unknown_token_count=sum(score.unknown_token_count for score in found),
            piece_count=sum(score.piece_count for score in found),
        )


def score(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="The files, in UTF-8.", show_default="standard input"),
    ] = None,
    model: Annotated[str, model_option("the only one that generates")] = "",
    context: Annotated[
        str, typer.Option(help="A text that goes before each file and is not scored.", show_default="none")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each file, and one for all together.")
    ] = False,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Tell how probable a model holds files: nats and bits per token, and perplexity.

    Files are read as training reads them: without a byte order mark, every end of a line as one newline. The first
    token of a file is not scored where nothing goes before it, neither --context nor a begin token of the model. A file
    that is longer than the server takes at once is cut, at an end of a line where there is one, and each piece but the
    first is scored behind the last 4096 characters (at most half a piece) of what goes before it; the column "pieces"
    tells where that was done. With --json a number that is infinite is null.
    """
    names = [str(file) for file in files or ()] or [STANDARD_INPUT]
    # All of them before the first call: a file that is not there is found before the others have taken their time.
    texts = [(name, read_text(name)) for name in names]
    asyncio.run(_score(texts, context, model, as_json, server, timeout))


async def _score(
    texts: list[tuple[str, str]], context: str, model: str, as_json: bool, server: str, timeout: float | None
) -> None:
    found, rows = [], []
    async with Client(server, timeout=timeout) as client:
        for name, text in texts:
            try:
                one = FileScore.of_pieces([piece async for piece in scored_pieces(client, text, context, model)])
            except InvalidRequestError as error:
                if not any(field.startswith("candidates") for field in error.fields):
                    raise
                # The server knows a text by its place in the request, people by the name of its file.
                raise InvalidRequestError(f"{shown_input(name)}: {error}", code=error.code) from error
            found.append(one)
            if as_json:
                print(_as_json({"file": shown_name(name)}, one), flush=True)
            rows.append((shown_input(name), *_row(one)))
    total = FileScore.sum(found)
    if as_json:
        print(_as_json({"file_count": len(found)}, total))
        return
    columns = ("file", "tokens", "unknown", "nats/token", "bits/token", "perplexity", "pieces")
    print_table(columns, [*rows, ("total", *_row(total))])


def _row(found: FileScore) -> tuple[str, ...]:
    return (
        str(found.token_count),
        str(found.unknown_token_count),
        f"{found.nats_per_token:.4f}",
        f"{found.bits_per_token:.4f}",
        f"{found.perplexity:.4f}",
        str(found.piece_count),
    )


def _as_json(subject: dict[str, Any], found: FileScore) -> str:
    numbers = {
        "log_likelihood": found.log_likelihood,
        "nats_per_token": found.nats_per_token,
        "bits_per_token": found.bits_per_token,
        "perplexity": found.perplexity,
        "token_count": found.token_count,
        "unknown_token_count": found.unknown_token_count,
        "piece_count": found.piece_count,
    }
    return json_line(subject | numbers)


async def scored_pieces(client: Client, text: str, context: str, model: str) -> AsyncIterator[Score]:
    """The scores of a text's pieces, in order: of one where the server takes the whole text at once.

    How much it takes depends on the model's vocabulary and on how the server was started, so that it is tried out: a
    piece that is refused for its length is made half as long, and so are those behind it.

    Args:
        client: the server.
        text: not empty.
        context: what goes before it; kept before the first piece, and as far as the overlap reaches behind it.
        model: the model's name, or "".

    Raises:
        ElmanError: a call has failed for another reason than the length of a piece.
    """
    longest = min(_LONGEST_PIECE, len(text))
    start = 0
    while start < len(text):
        end = piece_end(text, start, longest)
        before = context if start == 0 else (context + text[:start])[-min(_LONGEST_OVERLAP, -(-longest // 2)) :]
        try:
            found = await client.score(text[start:end], context=before, model=model, totals_only=True)
        except ElmanError as error:
            # The caller's context stays as long as it is.
            if not _is_too_long(error) or longest == 1 or (start == 0 and "context.text" in error.fields):
                raise
            longest = -(-longest // 2)
            continue
        yield found
        start = end


def _is_too_long(error: ElmanError) -> bool:
    if error.reason == "INPUT_TOO_LONG":
        return True
    # The transport, whose own limit lies above the server's, gives no reason.
    return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.reason in ("MESSAGE_TOO_LARGE", "")


def piece_end(text: str, start: int, longest: int) -> int:
    """Where a piece ends that starts at `start`: behind the last newline in its second half, else behind the last space
    there, else after `longest` characters. What a vocabulary of words or subwords makes of a text changes least so."""
    end = start + longest
    if end >= len(text):
        return len(text)
    for border in ("\n", " "):
        found = text.rfind(border, start + longest // 2, end)
        if found >= 0:
            return found + 1
    return end
