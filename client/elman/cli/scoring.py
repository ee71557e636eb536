"""`elman score`: the log-likelihood and perplexity of files."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from elman.analysis_results import Likelihood, Score
from elman.cli.options import Model, Server, Timeout
from elman.cli.printing import json_line, print_table, shown_name
from elman.cli.reading import STANDARD_INPUT, read_text, shown_input
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.errors import ElmanError, InvalidRequestError

_LONGEST_PIECE = 500_000  # characters; such a piece fits into a message of the default size limit
_LONGEST_OVERLAP = 4096  # characters


@dataclass(frozen=True)
class FileScore(Likelihood):
    """The log-likelihood of one file or several.

    Attributes:
        piece_count: the number of pieces in which they were scored.
    """

    piece_count: int

    @classmethod
    def of_pieces(cls, pieces: Iterable[Score]) -> FileScore:
        """The score of a file from the scores of its pieces."""
        return cls.sum(cls(piece.log_likelihood, piece.token_count, piece.unknown_token_count, 1) for piece in pieces)

    @classmethod
    def sum(cls, scores: Iterable[FileScore]) -> FileScore:
        """The score of all of them together, with the same weight for each token."""
        parts = list(scores)
        return cls(
            log_likelihood=math.fsum(score.log_likelihood for score in parts),
            token_count=sum(score.token_count for score in parts),
            unknown_token_count=sum(score.unknown_token_count for score in parts),
            piece_count=sum(score.piece_count for score in parts),
        )


def score(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Text files in UTF-8.", show_default="standard input"),
    ] = None,
    model: Model = "",
    context: Annotated[
        str, typer.Option(metavar="TEXT", help="Text before each file, which is not scored.", show_default="none")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each file, and one for all of them.")
    ] = False,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Score files: log-likelihood and perplexity.

    Files are read as in training: without a byte order mark, and with every line end as a newline. The first token of a
    file is not scored unless --context or a begin token of the model precedes it. A file that is too long for one
    request is cut, if possible at line ends, and each further piece is scored after the last 4096 characters (at most
    half a piece) before it; the column "pieces" shows their number. With --json, an infinite number is null.
    """
    names = [str(file) for file in files or ()] or [STANDARD_INPUT]
    # All are read before the first call, so that a missing file is reported immediately.
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
                # The server names a text by its index in the request.
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


def _as_json(name: dict[str, Any], found: FileScore) -> str:
    numbers = {
        "log_likelihood": found.log_likelihood,
        "nats_per_token": found.nats_per_token,
        "bits_per_token": found.bits_per_token,
        "perplexity": found.perplexity,
        "token_count": found.token_count,
        "unknown_token_count": found.unknown_token_count,
        "piece_count": found.piece_count,
    }
    return json_line(name | numbers)


async def scored_pieces(client: Client, text: str, context: str, model: str) -> AsyncIterator[Score]:
    """Score a text in as few pieces as the server accepts.

    The limit depends on the model's vocabulary and the server's settings, so it is found by trial: a piece that is
    refused for its length is halved, and so are those after it.

    Args:
        client: the client.
        text: the text; not empty.
        context: what precedes the text; further pieces see the part of it that their overlap reaches.
        model: the model's name, or "".

    Yields:
        The scores of the pieces, in order.

    Raises:
        ElmanError: a call failed for another reason than the length of a piece.
    """
    longest = min(_LONGEST_PIECE, len(text))
    start = 0
    while start < len(text):
        end = piece_end(text, start, longest)
        before = context if start == 0 else (context + text[:start])[-min(_LONGEST_OVERLAP, -(-longest // 2)) :]
        try:
            found = await client.score(text[start:end], context=before, model=model, totals_only=True)
        except ElmanError as error:
            # The caller's context is never shortened.
            if not _is_too_long(error) or longest == 1 or (start == 0 and "context.text" in error.fields):
                raise
            longest = -(-longest // 2)
            continue
        yield found
        start = end


def _is_too_long(error: ElmanError) -> bool:
    if error.reason == "INPUT_TOO_LONG":
        return True
    # The transport, whose limit is above that of the server, gives no reason.
    return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.reason in ("MESSAGE_TOO_LARGE", "")


def piece_end(text: str, start: int, longest: int) -> int:
    """The end of a piece, at a boundary that changes the tokens of words and subwords least.

    Args:
        text: the text.
        start: where the piece starts.
        longest: the largest number of characters of a piece.

    Returns:
        The position after the last newline in the second half of the longest piece, otherwise after the last space
        there, otherwise the end of the longest piece.
    """
    end = start + longest
    if end >= len(text):
        return len(text)
    for border in ("\n", " "):
        found = text.rfind(border, start + longest // 2, end)
        if found >= 0:
            return found + 1
    return end
