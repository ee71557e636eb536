"""`elman export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


class Quantization(StrEnum):
    int8 = "int8"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write the bundle to.", show_default="bundles/NAME")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model, by which requests choose it.", show_default="the run folder's"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            help="int8: compute products in 8-bit integers, several times as fast on a CPU with instructions for them "
            "(VNNI); the loss on held-out text is printed for int8 and float32.",
            show_default="none: float32",
        ),
    ] = None,
) -> None:
    """Export a trained model as a bundle, which is written only if its results equal those of torch."""
    from elman_export import export_run

    chosen = name or run.resolve().name
    folder = output or Path("bundles") / chosen
    console = Console(stderr=True, highlight=False, markup=False)
    digest = export_run(
        run, folder, name=chosen, overwrite=force, quantize="int8" if quantize else None, console=console
    )
    console.print(f"exported {folder}, {digest[:19]}")
    console.print(f"next: elman serve {folder}")
