"""`python -m tests.chaos`: kill servers while sessions stream; what was lost, doubled or different."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.cases.model import prepare_model
from benchmarks.processes.machine import RESULTS, TRIALS
from benchmarks.references.graphs import Sizes
from benchmarks.report.tables import progress
from rich.console import Console
from rich.table import Table

from tests.chaos.chart import draw
from tests.chaos.fleet import Balancer
from tests.chaos.trial import Outcome, Plan, behind_balancer, one_server
from tests.support.redis_server import redis_is_installed

# Small, so that a server is up again soon, and yet busy.
_SIZES = Sizes(vocabulary=96, embedding=64, hidden=128)
_SESSIONS, _KILLS = 64, 30

Trial = Callable[[Plan, Callable[[str], None]], Coroutine[Any, Any, Outcome]]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    sessions: Annotated[int, typer.Option(help="How many sessions stream.", min=1)] = _SESSIONS,
    kills: Annotated[int, typer.Option(help="How many times a server is killed, in each trial.", min=1)] = _KILLS,
    seed: Annotated[int, typer.Option(help="Of the moments, of what is asked for.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or int8.")] = "fp32",
) -> None:
    """Kill servers at random moments while sessions stream, start them again, and hold what every client has seen
    against a run that nobody disturbed: one server on SQLite, then two on Redis behind nginx, where both are installed.
    Ends with 0 only if nothing was lost, doubled or different."""
    bundle = prepare_model(_SIZES, [precision]).bundle(precision)
    trials: dict[str, Trial] = {"one server, SQLite": one_server}
    if redis_is_installed() and Balancer.is_installed():
        trials["two servers, Redis, nginx"] = behind_balancer
    else:
        Console(stderr=True).print(
            "redis-server and nginx are not both installed: only the trial of one server is made"
        )
    outcomes: dict[str, Outcome] = {}
    with progress(kills * len(trials)) as advance:
        for name, trial in trials.items():
            with tempfile.TemporaryDirectory() as folder:
                outcomes[name] = asyncio.run(trial(Plan(bundle, Path(folder), sessions, kills, seed), advance))
    _print(outcomes)
    usual = (sessions, kills, len(trials)) == (_SESSIONS, _KILLS, 2)
    picture = (RESULTS if usual else TRIALS) / "chaos.png"
    draw(outcomes, picture)
    print(picture)
    sys.exit(not all(outcome.verdict.sound for outcome in outcomes.values()))


def _print(outcomes: dict[str, Outcome]) -> None:
    headings = ("trial", "sessions", "kills", "while streaming", "calls", "tokens", "seconds")
    table = Table(*headings, "lost", "doubled", "different", box=None)
    for name, outcome in outcomes.items():
        verdict = outcome.verdict
        facts = (verdict.sessions, outcome.kills, outcome.busy_kills, verdict.calls, verdict.tokens)
        table.add_row(
            name,
            *(f"{fact:,}" for fact in facts),
            f"{outcome.seconds:.0f}",
            *(f"{count:,}" for count in (verdict.lost, verdict.doubled, verdict.different)),
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for outcome in outcomes.values():
        for reason in outcome.verdict.reasons:
            console.print(reason, style="red")


if __name__ == "__main__":
    app()
