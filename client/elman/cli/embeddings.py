"""`elman embeddings`: the nearest neighbours of a trained network's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elman.cli.printing import print_table

_DEFAULT_TOKENS = 8


def embeddings(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.", show_default=False)],
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="Token to show the neighbours of; repeatable.",
            show_default="the first ones of the vocabulary, the most frequent words or symbols",
        ),
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Number of neighbours of each token.", min=1)] = 8,
    picture_tokens: Annotated[int, typer.Option(help="Number of tokens to draw without --token.", min=2)] = 100,
    output: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Picture to write.", show_default="embeddings.png in the run's folder"),
    ] = None,
) -> None:
    """Show the nearest neighbours of tokens by cosine similarity, and draw their vectors.

    The picture shows the two principal components. With --token it shows these tokens and their neighbours, each group
    in one colour. A network with two vocabularies has a table and a picture for each.
    """
    from elman_training.token_embeddings import draw_embeddings, load_embeddings

    tables = load_embeddings(run)
    for text in token or ():
        if all(table.find(text) is None for table in tables.values()):
            raise typer.BadParameter(f"--token: got {text!r}; it must be exactly one token of the run's vocabulary")
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
