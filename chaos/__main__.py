"""`python -m chaos`: kill servers while sessions stream; what was lost, doubled or different."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.graphs import Sizes
from benchmarks.model import prepare_model
from benchmarks.report import progress
from chaos.fleet import Server
from chaos.trial import Outcome, Plan, attempt

# Small, so that a server is up again soon, and yet busy.
_SIZES = Sizes(vocabulary=96, embedding=64, hidden=128)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    sessions: Annotated[int, typer.Option(help="How many sessions stream.", min=1)] = 64,
    kills: Annotated[int, typer.Option(help="How many times a server is killed, in each trial.", min=1)] = 30,
    seed: Annotated[int, typer.Option(help="Of the moments, of what is asked for.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or int8.")] = "fp32",
) -> None:
    """Kill servers at random moments while sessions stream, start them again, and hold what every client has seen
    against a run that nobody disturbed. Ends with 0 only if nothing was lost, doubled or different."""
    bundle = prepare_model(_SIZES, [precision]).bundle(precision)
    outcomes = {}
    with progress(kills) as advance, tempfile.TemporaryDirectory() as folder:
        plan = Plan(bundle, Path(folder), sessions, kills, seed)
        outcomes["one server, SQLite"] = asyncio.run(_one_server(plan, advance))
    _print(outcomes)
    sys.exit(not all(outcome.verdict.sound for outcome in outcomes.values()))


async def _one_server(plan: Plan, advance: Callable[[str], None]) -> Outcome:
    options = [*plan.options, "--store", str(plan.folder / "sessions.db"), "--snapshot-steps", "128"]
    async with Server(plan.folder, "server", plan.bundle, options) as server:
        return await attempt(plan, [server], server.address, advance)


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
