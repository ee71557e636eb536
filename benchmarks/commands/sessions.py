"""The command `sessions`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from benchmarks.cases import sessions as session_cases
from benchmarks.cases.session_options import SessionOptions
from benchmarks.commands.common import (
    ALL_PRECISIONS,
    NO_OPTIONS,
    MinimumSeconds,
    Output,
    Precisions,
    Repeats,
    ServerOptions,
    print_written,
    results_folder,
)
from benchmarks.report.columns import SESSION_COLUMNS, SESSION_LEGENDS, SESSION_TITLES, of_case, session_targets
from benchmarks.report.tables import merge, print_disturbance, print_table, print_targets, progress


class SessionCase(StrEnum):
    durability = "durability"
    idle = "idle"
    prefix = "prefix"


_SESSIONS = SessionOptions()
_SESSION_CASES = list(SessionCase)


def sessions(
    case: Annotated[list[SessionCase], typer.Option(help="Case to measure; may be repeated.")] = _SESSION_CASES,
    precision: Precisions = ALL_PRECISIONS,
    repeats: Repeats = _SESSIONS.repeats,
    seconds: MinimumSeconds = _SESSIONS.seconds,
    idle_sessions: Annotated[int, typer.Option(help="Number of idle sessions.", min=10)] = _SESSIONS.sessions,
    wakes: Annotated[int, typer.Option(help="Number of idle sessions that are called.", min=1)] = _SESSIONS.wakes,
    pairs: Annotated[int, typer.Option(help="Long prompts, each of which is sent twice.", min=1)] = _SESSIONS.pairs,
    server_option: ServerOptions = NO_OPTIONS,
    output: Output = None,
) -> None:
    """Measure the cost of durability, the memory of idle sessions, and the benefit of the prefix cache."""
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
    with progress(session_cases.step_count(options)) as advance:
        rows = session_cases.measure_sessions(options, advance)
    folder = results_folder(output, options.worth_keeping)
    merge(folder / "sessions.json", rows, ("case", "precision", "store", "prefix_cache"))
    for name in options.cases:
        print_table(SESSION_TITLES[name], SESSION_COLUMNS[name], of_case(rows, name), SESSION_LEGENDS[name])
    print_targets(session_targets(), rows)
    print_disturbance(rows)
    print_written(folder / "sessions.json")
