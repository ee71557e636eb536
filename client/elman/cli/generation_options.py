"""The options of `elman generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SAMPLING, _SEARCH, _SHAPING = "Sampling", "Beam search", "Penalties and constraints"
_LENGTH, _OUTPUT = "Length and stopping", "Output"

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.", show_default=False)]
Source = Annotated[
    str | None,
    typer.Option(help="Text for the model's encoder, such as a sentence to translate.", show_default="none"),
]
SessionId = Annotated[
    str,
    typer.Option("--session", help="Session to continue, as created by `elman session create`.", show_default="none"),
]

Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sharpen (below 1) or flatten (above 1) the distribution; 0 always takes the most probable token.",
        show_default="1",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Sample only from the K most probable tokens.", show_default="all", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Sample only from the most probable tokens that together reach this probability.",
        show_default="1, all",
        rich_help_panel=_SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        help="Sample only from tokens with at least this share of the probability of the most probable one.",
        show_default="0, all",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed; the same seed gives the same text.", show_default="random", rich_help_panel=_SAMPLING),
]
Samples = Annotated[int, typer.Option(help="Number of independent continuations.", min=1, rich_help_panel=_SAMPLING)]

Beams = Annotated[
    int | None,
    typer.Option(
        help="Number of beams; searches for the most probable continuation instead of sampling.",
        show_default="no search",
        rich_help_panel=_SEARCH,
    ),
]
Results = Annotated[
    int | None,
    typer.Option(help="Number of continuations to show.", show_default="1", rich_help_panel=_SEARCH),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        help="Exponent of the length that divides the score; larger values favour longer continuations.",
        show_default="1",
        rich_help_panel=_SEARCH,
    ),
]

RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        help="Above 1, make tokens that have occurred less probable.", show_default="1", rich_help_panel=_SHAPING
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        help="Subtract this from a token's logit each time it is generated.",
        show_default="0",
        rich_help_panel=_SHAPING,
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        help="Subtract this once from the logit of a token that was generated.",
        show_default="0",
        rich_help_panel=_SHAPING,
    ),
]
Bias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=NUMBER", help="Add a number to the logit of a token; repeatable.", rich_help_panel=_SHAPING
    ),
]
Forbid = Annotated[
    list[int] | None,
    typer.Option(metavar="ID", help="Never generate this token; repeatable.", rich_help_panel=_SHAPING),
]
Regex = Annotated[
    str | None,
    typer.Option(help="Regular expression that the whole text must match.", rich_help_panel=_SHAPING),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSON schema that the text must satisfy.",
        exists=True,
        dir_okay=False,
        rich_help_panel=_SHAPING,
    ),
]
LarkGrammar = Annotated[
    Path | None,
    typer.Option(
        "--lark",
        metavar="FILE",
        help="Lark grammar that the text must satisfy.",
        exists=True,
        dir_okay=False,
        rich_help_panel=_SHAPING,
    ),
]

MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Largest number of tokens to generate.",
        show_default="256, or the server's limit if it is lower",
        rich_help_panel=_LENGTH,
    ),
]
MinTokens = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens before which the end token is not generated.",
        show_default="0",
        rich_help_panel=_LENGTH,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End before this text; repeatable.", rich_help_panel=_LENGTH),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="End after this time, with the tokens so far.", rich_help_panel=_LENGTH),
]

AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object for each continuation, with token ids, finish reason, scores and usage.",
        rich_help_panel=_OUTPUT,
    ),
]
LogProbabilities = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="With --json, add the log-probability of each token and of the N most probable ones.",
        show_default="none",
        rich_help_panel=_OUTPUT,
    ),
]
