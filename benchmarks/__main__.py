"""`python -m benchmarks`: measure, print, write."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from benchmarks.cases import arrivals_and_prompts as special
from benchmarks.cases import comparison
from benchmarks.cases import decoding as choosing
from benchmarks.cases import growth as growing
from benchmarks.cases import serving as together
from benchmarks.cases import sessions as keeping
from benchmarks.cases import translations as translating
from benchmarks.cases import trees as labelling
from benchmarks.cases.ablation_variants import VARIANTS
from benchmarks.cases.comparison import ComparisonOptions
from benchmarks.cases.decoding import DecodingOptions
from benchmarks.cases.session_options import SessionOptions
from benchmarks.cases.tasks import TASK_COLUMNS, TASK_LEGEND, gather_tasks
from benchmarks.cases.trees import TreeOptions
from benchmarks.processes.machine import RESULTS, ROOT, TRIALS
from benchmarks.processes.server import Program
from benchmarks.processes.worker import MeasurementError
from benchmarks.report.charts import draw_growth, draw_serving
from benchmarks.report.columns import (
    CASE_COLUMNS,
    CASE_LEGENDS,
    CASE_TITLES,
    COMPARISON_COLUMNS,
    COMPARISON_LEGEND,
    DECODING_COLUMNS,
    DECODING_LEGEND,
    GROWTH_COLUMNS,
    GROWTH_LEGEND,
    LATENCY_COLUMNS,
    LATENCY_LEGEND,
    SESSION_COLUMNS,
    SESSION_LEGENDS,
    SESSION_TITLES,
    THROUGHPUT_COLUMNS,
    THROUGHPUT_LEGEND,
    TRANSLATION_COLUMNS,
    TRANSLATION_LEGEND,
    TREE_COLUMNS,
    TREE_LEGEND,
    case_promises,
    decoding_promises,
    of_case,
    serving_promises,
    session_promises,
    translation_promises,
    tree_promises,
)
from benchmarks.report.tables import merge, print_disturbance, print_promises, print_table, progress, rounded
from benchmarks.report.task_chart import draw_tasks


class Precision(StrEnum):
    fp32 = "fp32"
    int8 = "int8"


class Factor(StrEnum):
    hidden = "hidden"
    vocabulary = "vocabulary"
    prompt_tokens = "prompt_tokens"
    streams = "streams"


class SessionCase(StrEnum):
    durability = "durability"
    idle = "idle"
    prefix = "prefix"


app = typer.Typer(
    help="Measure the server beside what onnxruntime alone does. A run that is shorter or different from the usual "
    "writes its results to runs/benchmarks/results, so that those in the repository stay comparable; one of some "
    "streams or precisions only replaces their rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Precisions = Annotated[list[Precision], typer.Option("--precision", help="Of the bundles; may be repeated.")]
Repeats = Annotated[int, typer.Option(help="Medians over so many are quoted.", min=1)]
Connections = Annotated[int, typer.Option(help="Connections that the streams share.", min=1)]
ServerOptions = Annotated[
    list[str], typer.Option("--server-option", help="For `elman serve`, such as --threads=1; may be repeated.")
]
ComparisonCases = Annotated[list[str], typer.Option("--case", help="What to measure; may be repeated.")]
Output = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default=False)]

_SERVING, _CASES, _GROWTH = together.ServingOptions(), special.CaseOptions(), growing.GrowthOptions()
_SESSIONS, _DECODING, _TREES = SessionOptions(), DecodingOptions(), TreeOptions()
_TRANSLATIONS = translating.TranslationOptions()
_COMPARISON, _COMPARISON_CASES = ComparisonOptions(), list(comparison.CASES)
_VARIANTS = [name for name in VARIANTS if name != "none"]
_BOTH, _FACTORS, _SESSION_CASES = list(Precision), list(Factor), list(SessionCase)
_STREAMS = list(_SERVING.streams)
_HIDDEN = list(_TREES.hidden)
_NONE: list[str] = []


@app.command()
def serving(
    streams: Annotated[list[int], typer.Option(help="Streams at once; may be repeated.", min=1)] = _STREAMS,
    precision: Precisions = _BOTH,
    repeats: Repeats = _SERVING.repeats,
    seconds: Annotated[float, typer.Option(help="At least so long for each measurement.")] = _SERVING.seconds,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = _SERVING.prompt_tokens,
    max_tokens: Annotated[int, typer.Option(help="Tokens that each stream generates.", min=2)] = _SERVING.max_tokens,
    connections: Connections = _SERVING.connections,
    server_option: ServerOptions = _NONE,
    output: Output = None,
) -> None:
    """The main table: S streams that start at once, beside U at the same S."""
    options = together.ServingOptions(
        streams=tuple(sorted(set(streams))),
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        seconds=seconds,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        connections=connections,
        server_options=tuple(server_option),
    )
    with progress(together.step_count(options)) as advance:
        rows = together.measure_serving(options, advance)
    folder = _folder(output, options.worth_keeping)
    draw_serving(merge(folder / "serving.json", rows, ("streams", "precision")), folder / "serving.png")
    print_table("Throughput of streams that start at once", THROUGHPUT_COLUMNS, rows, THROUGHPUT_LEGEND)
    print_table("Latency and cost of the same", LATENCY_COLUMNS, rows, LATENCY_LEGEND)
    print_promises(serving_promises(), rows)
    print_disturbance(rows)
    _say_where(folder / "serving.json", folder / "serving.png")


@app.command()
def cases(
    precision: Precisions = _BOTH,
    repeats: Repeats = _CASES.repeats,
    seconds: Annotated[float, typer.Option(help="About so long for each case and repeat.")] = _CASES.seconds,
    load: Annotated[float, typer.Option(help="Of the random arrivals; 1 keeps some 64 running.")] = _CASES.load,
    chunk_ms: Annotated[float, typer.Option(help="The longest chunk the server allows itself.")] = _CASES.chunk_ms,
    long_prompt: Annotated[int, typer.Option(help="Tokens of the long prompt.", min=1)] = _CASES.long_prompt,
    connections: Connections = _CASES.connections,
    server_option: ServerOptions = _NONE,
    output: Output = None,
) -> None:
    """The special cases: random arrivals, a newcomer, a very long prompt, a client that calls now and then."""
    options = special.CaseOptions(
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        seconds=seconds,
        load=load,
        chunk_ms=chunk_ms,
        long_prompt=long_prompt,
        connections=connections,
        server_options=tuple(server_option),
    )
    with progress(special.step_count(options)) as advance:
        rows = special.measure_cases(options, advance)
    folder = _folder(output, options.worth_keeping)
    merge(folder / "cases.json", rows, ("case", "precision"))
    for case, columns in CASE_COLUMNS.items():
        print_table(CASE_TITLES[case], columns, of_case(rows, case), CASE_LEGENDS[case])
    print_promises(case_promises(), rows)
    print_disturbance(rows)
    _say_where(folder / "cases.json")


@app.command()
def growth(
    factor: Annotated[list[Factor], typer.Option(help="What grows; may be repeated.")] = _FACTORS,
    precision: Precisions = _BOTH,
    repeats: Repeats = _GROWTH.repeats,
    seconds: Annotated[float, typer.Option(help="At least so long for each measurement.")] = _GROWTH.seconds,
    max_tokens: Annotated[int, typer.Option(help="Tokens that each stream generates.", min=2)] = _GROWTH.max_tokens,
    largest: Annotated[int, typer.Option(help="Leave out larger values of each factor; 0: none.", min=0)] = 0,
    server_option: ServerOptions = _NONE,
    output: Output = None,
) -> None:
    """The second table: how the cost grows with the work, and where it goes."""
    options = growing.GrowthOptions(
        factors=tuple(dict.fromkeys(factor)),
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        seconds=seconds,
        max_tokens=max_tokens,
        largest=largest,
        server_options=tuple(server_option),
    )
    with progress(growing.step_count(options)) as advance:
        rows = growing.measure_growth(options, advance)
    folder = _folder(output, options.worth_keeping)
    draw_growth(merge(folder / "growth.json", rows, ("factor", "value", "precision")), folder / "growth.png")
    print_table("How the cost grows", GROWTH_COLUMNS, rows, GROWTH_LEGEND)
    print_disturbance(rows)
    _say_where(folder / "growth.json", folder / "growth.png")


@app.command()
def decoding(
    precision: Precisions = _BOTH,
    repeats: Repeats = _DECODING.repeats,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each sequence.", min=1)] = _DECODING.max_tokens,
    server_option: ServerOptions = _NONE,
    output: Output = None,
) -> None:
    """Ways to decode: what each costs beside plain sampling."""
    options = DecodingOptions(
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        max_tokens=max_tokens,
        server_options=tuple(server_option),
    )
    with progress(choosing.step_count(options)) as advance:
        rows = choosing.measure_decoding(options, advance)
    folder = _folder(output, options.worth_keeping)
    merge(folder / "decoding.json", rows, ("precision", "way"))
    print_table("Ways to decode", DECODING_COLUMNS, rows, DECODING_LEGEND)
    print_promises(decoding_promises(), rows)
    print_disturbance(rows)
    _say_where(folder / "decoding.json")


@app.command()
def trees(
    clients: Annotated[int, typer.Option(help="Trees under way at once.", min=1)] = _TREES.clients,
    repeats: Repeats = _TREES.repeats,
    seconds: Annotated[float, typer.Option(help="Each measurement takes so long.")] = _TREES.seconds,
    hidden: Annotated[list[int], typer.Option(help="Units of the Tree-LSTM; may be repeated.", min=1)] = _HIDDEN,
    connections: Connections = _TREES.connections,
    server_option: ServerOptions = _NONE,
    output: Output = None,
) -> None:
    """Trees: clients that each send one after the other, beside onnxruntime alone, level by level."""
    options = TreeOptions(
        clients=clients,
        repeats=repeats,
        seconds=seconds,
        hidden=tuple(hidden),
        connections=connections,
        server_options=tuple(server_option),
    )
    with progress(labelling.step_count(options)) as advance:
        rows = labelling.measure_trees(options, advance)
    folder = _folder(output, options.worth_keeping)
    merge(folder / "trees.json", rows, ("clients", "hidden", "calls"))
    print_table("Trees", TREE_COLUMNS, rows, TREE_LEGEND)
    print_promises(tree_promises(), rows)
    print_disturbance(rows)
    _say_where(folder / "trees.json")


@app.command()
def sessions(
    case: Annotated[list[SessionCase], typer.Option(help="Which case; may be repeated.")] = _SESSION_CASES,
    precision: Precisions = _BOTH,
    repeats: Repeats = _SESSIONS.repeats,
    seconds: Annotated[float, typer.Option(help="At least so long for each measurement.")] = _SESSIONS.seconds,
    idle_sessions: Annotated[int, typer.Option(help="How many sessions are idle.", min=10)] = _SESSIONS.sessions,
    wakes: Annotated[int, typer.Option(help="How many of them are woken.", min=1)] = _SESSIONS.wakes,
    pairs: Annotated[int, typer.Option(help="How many long prompts are asked twice.", min=1)] = _SESSIONS.pairs,
    server_option: ServerOptions = _NONE,
    output: Output = None,
) -> None:
    """Sessions: what durability costs, what idle ones take, what is saved on prompts read before."""
    options = SessionOptions(
        cases=tuple(dict.fromkeys(case)),
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        seconds=seconds,
        sessions=idle_sessions,
        wakes=wakes,
        pairs=pairs,
        server_options=tuple(server_option),
    )
    with progress(keeping.step_count(options)) as advance:
        rows = keeping.measure_sessions(options, advance)
    folder = _folder(output, options.worth_keeping)
    merge(folder / "sessions.json", rows, ("case", "precision", "store", "prefix_cache"))
    for name in options.cases:
        print_table(SESSION_TITLES[name], SESSION_COLUMNS[name], of_case(rows, name), SESSION_LEGENDS[name])
    print_promises(session_promises(), rows)
    print_disturbance(rows)
    _say_where(folder / "sessions.json")


@app.command()
def ablation(
    variant: Annotated[
        list[str], typer.Option(help=f"The heuristic to leave out: {', '.join(VARIANTS)}; may be repeated.")
    ] = _VARIANTS,
    case: ComparisonCases = _COMPARISON_CASES,
    precision: Precisions = _BOTH,
    repeats: Repeats = _COMPARISON.repeats,
    seconds: Annotated[float, typer.Option(help="Each measurement takes about this long.")] = _COMPARISON.seconds,
    output: Output = None,
) -> None:
    """The server with and without each heuristic, alternating."""
    programs = [Program()]
    programs += [Program(name, "benchmarks.processes.ablation_server", (name,)) for name in dict.fromkeys(variant)]
    _compare(programs, precision, case, repeats, seconds, output, "ablation.json", "Without a heuristic")


@app.command()
def compare(
    against: Annotated[Path, typer.Argument(help="A checkout of an earlier commit.", show_default=False)],
    module: Annotated[str, typer.Option(help="The module of its command line.")] = "elman.cli",
    case: ComparisonCases = _COMPARISON_CASES,
    precision: Precisions = _BOTH,
    repeats: Repeats = _COMPARISON.repeats,
    seconds: Annotated[float, typer.Option(help="Each measurement takes about this long.")] = _COMPARISON.seconds,
    output: Output = None,
) -> None:
    """This code and that of another checkout, alternating."""
    programs = [Program("before", module, checkout=against.resolve()), Program("now")]
    _compare(programs, precision, case, repeats, seconds, output, "comparison.json", "Compared with before")


def _compare(
    programs: list[Program],
    precision: list[Precision],
    case: list[str],
    repeats: int,
    seconds: float,
    output: Path | None,
    file: str,
    title: str,
) -> None:
    options = ComparisonOptions(tuple(dict.fromkeys(precision)), tuple(dict.fromkeys(case)), repeats, seconds)
    with progress(comparison.step_count(programs, options)) as advance:
        rows = comparison.compare(programs, options, advance)
    folder = _folder(output, options.worth_keeping)
    merge(folder / file, rows, ("program", "precision", "case", "figure"))
    print_table(title, COMPARISON_COLUMNS, rows, COMPARISON_LEGEND)
    _say_where(folder / file)


@app.command()
def tasks(
    run: Annotated[list[Path], typer.Argument(help="The folders of finished training runs, one of a preset.")],
    output: Output = None,
) -> None:
    """What trained models reach, each beside its floor. Not a part of `make bench`: it measures nothing itself, but
    gathers what `elman train --preset NAME` has measured in the end; figures of presets that are not given stay.
    """
    rows = gather_tasks(run)
    folder = output or RESULTS
    draw_tasks(merge(folder / "tasks.json", rows, ("preset", "metric")), folder / "tasks.png")
    print_table("What trained models reach", TASK_COLUMNS, rounded(rows), TASK_LEGEND)
    _say_where(folder / "tasks.json", folder / "tasks.png")


@app.command()
def translations(
    precision: Precisions = _BOTH,
    repeats: Repeats = _TRANSLATIONS.repeats,
    server_option: ServerOptions = _NONE,
    output: Output = None,
) -> None:
    """Encoder-decoders: 64 clients that translate, beside a batched loop of onnxruntime alone."""
    options = translating.TranslationOptions(
        precisions=tuple(dict.fromkeys(precision)), repeats=repeats, server_options=tuple(server_option)
    )
    with progress(translating.step_count(options)) as advance:
        rows = translating.measure(options, advance)
    folder = _folder(output, options.worth_keeping)
    merge(folder / "translations.json", rows, ("precision", "calls"))
    print_table("Translations", TRANSLATION_COLUMNS, rows, TRANSLATION_LEGEND)
    print_promises(translation_promises(), rows)
    print_disturbance(rows)
    _say_where(folder / "translations.json")


def _folder(output: Path | None, worth_keeping: bool) -> Path:
    return output or (RESULTS if worth_keeping else TRIALS)


def _say_where(*paths: Path) -> None:
    for path in paths:
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        typer.echo(f"written: {shown}")


def _end(number: int, frame: FrameType | None) -> None:
    # As an exception, so that no server is left behind.
    sys.exit(128 + number)


def main() -> None:
    """Run the command; what could not be measured is told without a traceback."""
    signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except MeasurementError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
