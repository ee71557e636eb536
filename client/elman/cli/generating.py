"""`elman generate`: one continuation as a stream, several samples, or a beam search."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import typer

from elman.cli import generation_options as options
from elman.cli.options import Model, Server, Timeout
from elman.cli.printing import json_line, note_unknown
from elman.cli.reading import read_text
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.generation_results import Continuation, TokenReport

# Parameters of the command that `Client.generate`, `sample` and `search` take under the same name.
_PASSED_ON = (
    "model", "source", "timeout", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty",
    "frequency_penalty", "presence_penalty", "regex", "min_tokens", "time_limit",
)  # fmt: skip


def generate(
    ctx: typer.Context,
    prompt: options.Prompt = "",
    source: options.Source = None,
    model: Model = "",
    session: options.SessionId = "",
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    samples: options.Samples = 1,
    beams: options.Beams = None,
    results: options.Results = None,
    length_penalty: options.LengthPenalty = None,
    repetition_penalty: options.RepetitionPenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    bias: options.Bias = None,
    forbid: options.Forbid = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    lark: options.LarkGrammar = None,
    max_tokens: options.MaxTokens = None,
    min_tokens: options.MinTokens = None,
    stop: options.Stop = None,
    time_limit: options.TimeLimit = None,
    as_json: options.AsJson = False,
    log_probabilities: options.LogProbabilities = None,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Continue a text. The continuation is streamed to standard output."""
    _check_combination(ctx.params)
    arguments = _arguments(ctx.params)
    if beams is not None:
        search = {"width": beams, "count": results, "length_penalty": length_penalty}
        arguments |= {name: value for name, value in search.items() if value is not None}
        asyncio.run(_print_all("search", prompt, server, arguments, as_json))
    elif samples > 1:
        arguments |= {"count": samples, "log_probabilities": log_probabilities}
        asyncio.run(_print_all("sample", prompt, server, arguments, as_json))
    else:
        arguments |= {"session": session, "log_probabilities": log_probabilities}
        asyncio.run(_stream(prompt, server, arguments, as_json))


def _check_combination(given: Mapping[str, Any]) -> None:
    """Refuse options that exclude or need each other."""
    beams, several = given["beams"], given["samples"] > 1 or given["beams"] is not None
    if several and given["session"]:
        raise typer.BadParameter("--session has one continuation and excludes --samples and --beams")
    if given["samples"] > 1 and beams is not None:
        raise typer.BadParameter("--samples and --beams exclude each other")
    if given["log_probabilities"] is not None and not given["as_json"]:
        raise typer.BadParameter("--log-probabilities needs --json")
    if beams is not None and given["log_probabilities"] is not None:
        raise typer.BadParameter("--beams and --log-probabilities exclude each other; a search reports scores")
    for name, option in (("results", "--results"), ("length_penalty", "--length-penalty")):
        if beams is None and given[name] is not None:
            raise typer.BadParameter(f"{option} needs --beams")


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the client's method, by name."""
    schema, grammar = given["json_schema"], given["lark"]
    return {
        **{name: given[name] for name in _PASSED_ON},
        "logit_bias": dict(map(_parse_bias, given["bias"] or ())),
        "forbidden_tokens": given["forbid"] or (),
        "json_schema": read_text(str(schema)) if schema else None,
        "lark_grammar": read_text(str(grammar)) if grammar else None,
        "stop": given["stop"] or (),
    }


def _parse_bias(text: str) -> tuple[int, float]:
    token, separator, value = text.partition("=")
    try:
        if separator:
            return int(token), float(value)
    except ValueError:
        pass
    raise typer.BadParameter(f"--bias: got {text!r}; it must be ID=NUMBER, like 17=-2.5")


async def _stream(prompt: str, server: str, arguments: dict[str, Any], as_json: bool) -> None:
    async with Client(server) as client:
        stream = client.generate(prompt, **arguments)
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            if not as_json:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        if as_json:
            assert stream.finish_reason is not None
            continuation = Continuation(
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
            print(_as_json(continuation))
        elif sys.stdout.isatty():
            sys.stdout.write("\n")
        note_unknown(stream.unknown_token_count, "prompt")
        note_unknown(stream.source_unknown_count, "source")


async def _print_all(method: str, prompt: str, server: str, arguments: dict[str, Any], as_json: bool) -> None:
    async with Client(server) as client:
        found: list[Continuation] = await getattr(client, method)(prompt, **arguments)
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
