"""`elman generate`: a continuation as it comes, several of them, or a search, for people and for scripts."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from elman.cli.options import Server, Timeout, model_option
from elman.cli.printing import json_line, note_unknown
from elman.cli.reading import read_text
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.decoding import Continuation, TokenReport

_CHOOSING, _SHAPING, _ENDING, _ANSWER = "How tokens are chosen", "What is changed before", "When it ends", "The answer"


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)] = "",
    source: Annotated[
        str | None,
        typer.Option(
            help="What the model's encoder reads, such as a sentence to translate; needed where it has one.",
            show_default="none",
        ),
    ] = None,
    model: Annotated[str, model_option("the only one that generates")] = "",
    session: Annotated[
        str,
        typer.Option(
            help="Continue this session, whose id `elman session create` prints; the prompt follows what it holds.",
            show_default="none: the prompt is all there is",
        ),
    ] = "",
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Below 1 sharper, above 1 flatter, 0: always the most probable token.",
            show_default="1",
            rich_help_panel=_CHOOSING,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Draw from so many of the most probable tokens only.", show_default="all", rich_help_panel=_CHOOSING
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw only from the most probable tokens that together reach this probability.",
            show_default="1, all",
            rich_help_panel=_CHOOSING,
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Draw only from tokens at least so probable, beside the most probable one.",
            show_default="0, all",
            rich_help_panel=_CHOOSING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed gives the same text.", show_default="a random one", rich_help_panel=_CHOOSING),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(help="Draw so many continuations; the prompt is read once.", min=1, rich_help_panel=_CHOOSING),
    ] = 1,
    beams: Annotated[
        int | None,
        typer.Option(
            help="Search for the most probable continuation, so many beginnings side by side, and draw nothing.",
            show_default="no search",
            rich_help_panel=_CHOOSING,
        ),
    ] = None,
    results: Annotated[
        int | None,
        typer.Option(help="With --beams: how many continuations to show.", show_default="1", rich_help_panel=_CHOOSING),
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(
            help="With --beams: the exponent of the length that divides the score.",
            show_default="1",
            rich_help_panel=_CHOOSING,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            help="Above 1 what has occurred becomes less probable.", show_default="1", rich_help_panel=_SHAPING
        ),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        typer.Option(
            help="Taken from a token's logit as often as it was generated.",
            show_default="0",
            rich_help_panel=_SHAPING,
        ),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(
            help="Taken from the logit of a token that was generated.", show_default="0", rich_help_panel=_SHAPING
        ),
    ] = None,
    bias: Annotated[
        list[str] | None,
        typer.Option(help="ID=NUMBER, added to that token's logit; may be repeated.", rich_help_panel=_SHAPING),
    ] = None,
    forbid: Annotated[
        list[int] | None,
        typer.Option(help="The id of a token not to generate; may be repeated.", rich_help_panel=_SHAPING),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(help="A regular expression that the whole text matches.", rich_help_panel=_SHAPING),
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            help="A file with a JSON schema that the text satisfies.",
            exists=True,
            dir_okay=False,
            rich_help_panel=_SHAPING,
        ),
    ] = None,
    lark: Annotated[
        Path | None,
        typer.Option(
            help="A file with a Lark grammar that the text satisfies.",
            exists=True,
            dir_okay=False,
            rich_help_panel=_SHAPING,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="The largest number of tokens to generate.",
            show_default="256, or the server's limit if that is less",
            rich_help_panel=_ENDING,
        ),
    ] = None,
    min_tokens: Annotated[
        int | None,
        typer.Option(help="No end token before so many others.", show_default="0", rich_help_panel=_ENDING),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; may be repeated.", rich_help_panel=_ENDING),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="End after so many seconds, with what there is.", rich_help_panel=_ENDING),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a JSON object for each continuation: text, token_ids, finish_reason, stop_sequence, score (of "
            "--beams), log_probabilities (with that option, of each token) and usage. What there is not is null or an "
            "empty list, a number that is infinite null.",
            rich_help_panel=_ANSWER,
        ),
    ] = False,
    log_probabilities: Annotated[
        int | None,
        typer.Option(
            help="With --json: how probable each token was, and so many of the most probable ones.",
            show_default="no report",
            rich_help_panel=_ANSWER,
        ),
    ] = None,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Continue a text. The continuation, and nothing else, goes to standard output as it comes."""
    several = samples > 1 or beams is not None
    if several and session:
        raise typer.BadParameter("a session goes on in one way: --samples and --beams do not go with --session")
    if samples > 1 and beams is not None:
        raise typer.BadParameter("--samples and --beams exclude each other")
    if log_probabilities is not None and not as_json:
        raise typer.BadParameter("--log-probabilities needs --json")
    if beams is None:
        for option, given in (("--results", results), ("--length-penalty", length_penalty)):
            if given is not None:
                raise typer.BadParameter(f"{option} is of a search: it needs --beams")
    elif log_probabilities is not None:
        raise typer.BadParameter("--beams and --log-probabilities exclude each other: a search reports scores")
    options: dict[str, Any] = {
        "model": model,
        "source": source,
        "timeout": timeout,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "repetition_penalty": repetition_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "logit_bias": dict(_bias(one) for one in bias or ()),
        "forbidden_tokens": forbid or (),
        "regex": regex,
        "json_schema": read_text(str(json_schema)) if json_schema else None,
        "lark_grammar": read_text(str(lark)) if lark else None,
        "min_tokens": min_tokens,
        "stop": stop or (),
        "time_limit": time_limit,
    }
    if beams is not None:
        search = {"width": beams, "count": results, "length_penalty": length_penalty}
        options |= {name: value for name, value in search.items() if value is not None}
        asyncio.run(_several("search", prompt, server, options, as_json))
    elif samples > 1:
        options |= {"count": samples, "log_probabilities": log_probabilities}
        asyncio.run(_several("sample", prompt, server, options, as_json))
    else:
        options |= {"session": session, "log_probabilities": log_probabilities}
        asyncio.run(_stream(prompt, server, options, as_json))


def _bias(said: str) -> tuple[int, float]:
    token, separator, value = said.partition("=")
    try:
        if separator:
            return int(token), float(value)
    except ValueError:
        pass
    raise typer.BadParameter(f"--bias: {said!r} is not ID=NUMBER, like 17=-2.5")


async def _stream(prompt: str, server: str, options: dict[str, Any], as_json: bool) -> None:
    async with Client(server) as client:
        stream = client.generate(prompt, **options)
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            if not as_json:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        if as_json:
            assert stream.finish_reason is not None
            whole = Continuation(
                "".join(chunk.text for chunk in chunks),
                tuple(token for chunk in chunks for token in chunk.token_ids),
                stream.finish_reason,
                stream.stop_sequence,
                None,
                tuple(report for chunk in chunks for report in chunk.reports),
                stream.usage,
                stream.unknown_token_count,
                stream.source_unknown_count,
            )
            print(_as_json(whole))
        elif sys.stdout.isatty():
            sys.stdout.write("\n")
        note_unknown(stream.unknown_token_count, "prompt")
        note_unknown(stream.source_unknown_count, "source")


async def _several(call: str, prompt: str, server: str, options: dict[str, Any], as_json: bool) -> None:
    async with Client(server) as client:
        found: list[Continuation] = await getattr(client, call)(prompt, **options)
    for number, continuation in enumerate(found, 1):
        if as_json:
            print(_as_json(continuation))
            continue
        score = "" if continuation.score is None else f", score {continuation.score:.4f}"
        print(f"--- {number} of {len(found)}{score}")
        print(continuation.text)
    for first in found[:1]:  # All have the same prompt.
        note_unknown(first.unknown_token_count, "prompt")
        note_unknown(first.source_unknown_count, "source")


def _as_json(continuation: Continuation) -> str:
    return json_line(
        {
            "text": continuation.text,
            "token_ids": continuation.token_ids,
            "finish_reason": continuation.finish_reason.name.lower(),
            "stop_sequence": continuation.stop_sequence or None,
            "score": continuation.score,
            "log_probabilities": [_report(report) for report in continuation.reports],
            "usage": None if continuation.usage is None else asdict(continuation.usage),
        }
    )


def _report(report: TokenReport) -> dict[str, Any]:
    likely = [
        {"token_id": token, "text": text, "log_probability": log_probability}
        for token, text, log_probability in report.most_likely
    ]
    return {"log_probability": report.log_probability, "most_likely": likely}
