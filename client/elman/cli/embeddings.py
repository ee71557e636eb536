"""`elman embeddings`: what a trained network holds of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elman.cli.printing import print_table

_DEFAULT_TOKENS = 8


def embeddings(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.", show_default=False)],
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="A token whose neighbours are wanted; as often as wanted.",
            show_default="the first ones of the vocabulary, which in words and symbols are the commonest",
        ),
    ] = None,
    neighbours: Annotated[int, typer.Option(help="How many neighbours of each.", min=1)] = 8,
    picture_tokens: Annotated[
        int, typer.Option(help="How many tokens are drawn where none is given: the first ones.", min=2)
    ] = 100,
    output: Annotated[
        Path | None,
        typer.Option(help="The picture to write, a PNG.", show_default="embeddings.png in the run's folder"),
    ] = None,
) -> None:
    """Show which tokens a trained network holds to be alike: the nearest neighbours of some by the cosine between their
    vectors, and a picture of them along the two directions in which they differ most. Where --token is given these
    tokens are drawn with their neighbours, each with its own in one colour.

    A network that reads from one vocabulary and writes from another has a table and a picture for both.
    """
    from elman_training.token_embeddings import draw_embeddings, load_embeddings

    tables = load_embeddings(run)
    for text in token or ():
        if all(table.find(text) is None for table in tables.values()):
            raise typer.BadParameter(f"--token {text!r} is not one token that the run knows")
    console = Console(stderr=True, highlight=False, markup=False)
    for name, table in tables.items():
        asked = [found for text in token or () if (found := table.find(text)) is not None]
        if token and not asked:
            continue
        ids = asked or table.text_tokens[:_DEFAULT_TOKENS]
        near = {one: table.nearest(one, neighbours) for one in ids}
        kind = name.strip("-")
        print_table(
            [f"{kind} token".strip(), "neighbours"],
            [
                [table.shown(one), "  ".join(f"{table.shown(other.token)} {other.similarity:.2f}" for other in others)]
                for one, others in near.items()
            ],
        )
        if asked:
            groups = [[one, *(other.token for other in others)] for one, others in near.items()]
        else:
            groups = [table.text_tokens[:picture_tokens]]
        picture = output or run / "embeddings.png"
        if kind and len(tables) > 1:
            picture = picture.with_stem(f"{picture.stem}-{kind}")
        draw_embeddings(table, groups, picture)
        console.print(f"picture: {picture}", soft_wrap=True)
