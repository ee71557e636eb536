"""Commands that measure other kinds of models: `trees` and `translations`."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.cases import translations as translation_case
from benchmarks.cases import trees as tree_case
from benchmarks.cases.trees import TreeOptions
from benchmarks.commands.common import (
    ALL_PRECISIONS,
    NO_OPTIONS,
    Connections,
    Output,
    Precisions,
    Repeats,
    Seconds,
    ServerOptions,
    print_written,
    results_folder,
)
from benchmarks.report.columns import (
    TRANSLATION_COLUMNS,
    TRANSLATION_LEGEND,
    TREE_COLUMNS,
    TREE_LEGEND,
    translation_targets,
    tree_targets,
)
from benchmarks.report.tables import merge, print_disturbance, print_table, print_targets, progress

_TREES = TreeOptions()
_TRANSLATIONS = translation_case.TranslationOptions()
_HIDDEN = list(_TREES.hidden)


def trees(
    clients: Annotated[int, typer.Option(help="Number of concurrent trees.", min=1)] = _TREES.clients,
    repeats: Repeats = _TREES.repeats,
    seconds: Seconds = _TREES.seconds,
    hidden: Annotated[list[int], typer.Option(help="Hidden size of the Tree-LSTM; may be repeated.", min=1)] = _HIDDEN,
    connections: Connections = _TREES.connections,
    server_option: ServerOptions = NO_OPTIONS,
    output: Output = None,
) -> None:
    """Measure clients that send trees one after another, compared with onnxruntime alone, level by level."""
    options = TreeOptions(
        clients=clients,
        repeats=repeats,
        seconds=seconds,
        hidden=tuple(hidden),
        connections=connections,
        server_options=tuple(server_option),
    )
    with progress(tree_case.step_count(options)) as advance:
        rows = tree_case.measure_trees(options, advance)
    folder = results_folder(output, options.worth_keeping)
    merge(folder / "trees.json", rows, ("clients", "hidden", "calls"))
    print_table("Trees", TREE_COLUMNS, rows, TREE_LEGEND)
    print_targets(tree_targets(), rows)
    print_disturbance(rows)
    print_written(folder / "trees.json")


def translations(
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _TRANSLATIONS.repeats,
    server_option: ServerOptions = NO_OPTIONS,
    output: Output = None,
) -> None:
    """Measure 64 clients of an encoder-decoder, compared with a batched onnxruntime loop."""
    options = translation_case.TranslationOptions(
        precisions=tuple(dict.fromkeys(precision)), repeats=repeats, server_options=tuple(server_option)
    )
    with progress(translation_case.step_count(options)) as advance:
        rows = translation_case.measure(options, advance)
    folder = results_folder(output, options.worth_keeping)
    merge(folder / "translations.json", rows, ("precision", "calls"))
    print_table("Translations", TRANSLATION_COLUMNS, rows, TRANSLATION_LEGEND)
    print_targets(translation_targets(), rows)
    print_disturbance(rows)
    print_written(folder / "translations.json")
