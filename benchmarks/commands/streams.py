"""Commands that measure streams of a language model: `serving`, `cases`, `growth` and `decoding`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from benchmarks.cases import arrivals_and_prompts as special_cases
from benchmarks.cases import decoding as decoding_case
from benchmarks.cases import growth as growth_case
from benchmarks.cases import serving as serving_case
from benchmarks.cases.decoding import DecodingOptions
from benchmarks.commands.common import (
    ALL_PRECISIONS,
    NO_OPTIONS,
    Connections,
    MinimumSeconds,
    Output,
    Precisions,
    Repeats,
    Seconds,
    ServerOptions,
    print_written,
    results_folder,
)
from benchmarks.report.charts import draw_growth, draw_serving
from benchmarks.report.columns import (
    CASE_COLUMNS,
    CASE_LEGENDS,
    CASE_TITLES,
    DECODING_COLUMNS,
    DECODING_LEGEND,
    GROWTH_COLUMNS,
    GROWTH_LEGEND,
    LATENCY_COLUMNS,
    LATENCY_LEGEND,
    THROUGHPUT_COLUMNS,
    THROUGHPUT_LEGEND,
    case_targets,
    decoding_targets,
    of_case,
    serving_targets,
)
from benchmarks.report.tables import merge, print_disturbance, print_table, print_targets, progress


class Factor(StrEnum):
    hidden = "hidden"
    vocabulary = "vocabulary"
    prompt_tokens = "prompt_tokens"
    streams = "streams"


_SERVING, _CASES, _GROWTH = serving_case.ServingOptions(), special_cases.CaseOptions(), growth_case.GrowthOptions()
_DECODING = DecodingOptions()
_FACTORS = list(Factor)
_STREAMS = list(_SERVING.streams)


def serving(
    streams: Annotated[list[int], typer.Option(help="Concurrent streams; may be repeated.", min=1)] = _STREAMS,
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _SERVING.repeats,
    seconds: MinimumSeconds = _SERVING.seconds,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = _SERVING.prompt_tokens,
    max_tokens: Annotated[int, typer.Option(help="Tokens that each stream generates.", min=2)] = _SERVING.max_tokens,
    connections: Connections = _SERVING.connections,
    server_option: ServerOptions = NO_OPTIONS,
    output: Output = None,
) -> None:
    """Measure S streams that start together, compared with onnxruntime alone at the same S: the main table."""
    options = serving_case.ServingOptions(
        streams=tuple(sorted(set(streams))),
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        seconds=seconds,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        connections=connections,
        server_options=tuple(server_option),
    )
    with progress(serving_case.step_count(options)) as advance:
        rows = serving_case.measure_serving(options, advance)
    folder = results_folder(output, options.worth_keeping)
    draw_serving(merge(folder / "serving.json", rows, ("streams", "precision")), folder / "serving.png")
    print_table("Throughput of streams that start together", THROUGHPUT_COLUMNS, rows, THROUGHPUT_LEGEND)
    print_table("Latency and cost of the same streams", LATENCY_COLUMNS, rows, LATENCY_LEGEND)
    print_targets(serving_targets(), rows)
    print_disturbance(rows)
    print_written(folder / "serving.json", folder / "serving.png")


def cases(
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _CASES.repeats,
    seconds: Seconds = _CASES.seconds,
    load: Annotated[float, typer.Option(help="Arrival rate; 1 keeps about 64 streams running.")] = _CASES.load,
    chunk_ms: Annotated[float, typer.Option(help="Maximum chunk duration in milliseconds.")] = _CASES.chunk_ms,
    long_prompt: Annotated[int, typer.Option(help="Tokens of the long prompt.", min=1)] = _CASES.long_prompt,
    connections: Connections = _CASES.connections,
    server_option: ServerOptions = NO_OPTIONS,
    output: Output = None,
) -> None:
    """Measure random arrivals, a new request on a busy server, a very long prompt, and an occasional client."""
    options = special_cases.CaseOptions(
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        seconds=seconds,
        load=load,
        chunk_ms=chunk_ms,
        long_prompt=long_prompt,
        connections=connections,
        server_options=tuple(server_option),
    )
    with progress(special_cases.step_count(options)) as advance:
        rows = special_cases.measure_cases(options, advance)
    folder = results_folder(output, options.worth_keeping)
    merge(folder / "cases.json", rows, ("case", "precision"))
    for case, columns in CASE_COLUMNS.items():
        print_table(CASE_TITLES[case], columns, of_case(rows, case), CASE_LEGENDS[case])
    print_targets(case_targets(), rows)
    print_disturbance(rows)
    print_written(folder / "cases.json")


def growth(
    factor: Annotated[list[Factor], typer.Option(help="Factor that varies; may be repeated.")] = _FACTORS,
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _GROWTH.repeats,
    seconds: MinimumSeconds = _GROWTH.seconds,
    max_tokens: Annotated[int, typer.Option(help="Tokens that each stream generates.", min=2)] = _GROWTH.max_tokens,
    largest: Annotated[int, typer.Option(help="Skip values of a factor above this; 0: no limit.", min=0)] = 0,
    server_option: ServerOptions = NO_OPTIONS,
    output: Output = None,
) -> None:
    """Measure how the cost grows with the workload, and how it is composed: the second table."""
    options = growth_case.GrowthOptions(
        factors=tuple(dict.fromkeys(factor)),
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        seconds=seconds,
        max_tokens=max_tokens,
        largest=largest,
        server_options=tuple(server_option),
    )
    with progress(growth_case.step_count(options)) as advance:
        rows = growth_case.measure_growth(options, advance)
    folder = results_folder(output, options.worth_keeping)
    draw_growth(merge(folder / "growth.json", rows, ("factor", "value", "precision")), folder / "growth.png")
    print_table("Cost by workload", GROWTH_COLUMNS, rows, GROWTH_LEGEND)
    print_disturbance(rows)
    print_written(folder / "growth.json", folder / "growth.png")


def decoding(
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _DECODING.repeats,
    max_tokens: Annotated[int, typer.Option(help="Tokens that each sequence generates.", min=1)] = _DECODING.max_tokens,
    server_option: ServerOptions = NO_OPTIONS,
    output: Output = None,
) -> None:
    """Measure the cost of each decoding method compared with plain sampling."""
    options = DecodingOptions(
        precisions=tuple(dict.fromkeys(precision)),
        repeats=repeats,
        max_tokens=max_tokens,
        server_options=tuple(server_option),
    )
    with progress(decoding_case.step_count(options)) as advance:
        rows = decoding_case.measure_decoding(options, advance)
    folder = results_folder(output, options.worth_keeping)
    merge(folder / "decoding.json", rows, ("precision", "way"))
    print_table("Decoding methods", DECODING_COLUMNS, rows, DECODING_LEGEND)
    print_targets(decoding_targets(), rows)
    print_disturbance(rows)
    print_written(folder / "decoding.json")
