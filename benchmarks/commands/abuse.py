"""The command `abuse`: one client against all."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.cases import abuse as abuse_case
from benchmarks.cases.abuse import AbuseOptions
from benchmarks.clients.attacks import ATTACKS
from benchmarks.commands.common import Output, print_written, results_folder
from benchmarks.report.columns import ABUSE_COLUMNS, ABUSE_LEGEND, abuse_targets
from benchmarks.report.tables import merge, print_table, print_targets, progress

_OPTIONS, _ATTACKS = AbuseOptions(), list(ATTACKS)


def abuse(
    attack: Annotated[list[str], typer.Option(help="Attack; may be repeated.")] = _ATTACKS,
    seconds: Annotated[float, typer.Option(help="Duration of each attack in seconds.", min=2)] = _OPTIONS.seconds,
    recovery_seconds: Annotated[
        float, typer.Option(help="Time after an attack until memory is measured, in seconds.", min=0)
    ] = _OPTIONS.recovery_seconds,
    output: Output = None,
) -> None:
    """Attack a server in one way after the other while a polite client calls it, and show what that client notices."""
    unknown = [name for name in attack if name not in ATTACKS]
    if unknown:
        raise typer.BadParameter(f"got {unknown[0]!r}; must be one of: {', '.join(ATTACKS)}", param_hint="--attack")
    options = AbuseOptions(tuple(dict.fromkeys(attack)), seconds, recovery_seconds=recovery_seconds)
    with progress(abuse_case.step_count(options)) as advance:
        rows = abuse_case.measure_abuse(options, advance)
    folder = results_folder(output, options.worth_keeping)
    merge(folder / "abuse.json", rows, ("attack",))
    print_table("A polite client during attacks", ABUSE_COLUMNS, rows, ABUSE_LEGEND)
    print_targets(abuse_targets(options.attacks), rows)
    print_written(folder / "abuse.json")
