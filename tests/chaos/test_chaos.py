"""Sessions lose nothing when servers are killed, and the check that says so finds every kind of loss."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import pytest

from elman_bundle import Bundle
from tests.chaos.fleet import Balancer
from tests.chaos.history import CallHistory, SessionHistory, check
from tests.chaos.trial import Plan, behind_balancer, one_server
from tests.support.redis_server import redis_is_installed

Bundles = Mapping[str, Bundle]


def quietly(_: str) -> None:
    """Nobody watches."""


def rest(kills: int) -> float:
    """Return the seconds that sessions pause after a call: none in a long trial."""
    return 0.0 if kills > 10 else 0.5


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("sessions", "kills"),
    [(16, 1), pytest.param(64, 30, marks=pytest.mark.slow("30 restarts of a server; one of them is in `make test`"))],
)
async def test_sessions_lose_nothing_when_their_server_is_killed(
    bundles: Bundles, tmp_path: Path, sessions: int, kills: int
) -> None:
    outcome = await one_server(Plan(bundles["lstm"].path, tmp_path, sessions, kills, rest=rest(kills)), quietly)
    assert outcome.verdict.reasons == []
    assert outcome.verdict.sound
    assert outcome.verdict.sessions == sessions
    assert outcome.busy_kills == outcome.kills == kills
    assert outcome.verdict.calls > 500 * sessions * kills // (64 * 30)
    # A call that a kill interrupted was continued, not started again.
    log = (tmp_path / "server.log").read_text()
    assert log.count('"event": "listening"') == kills + 1


@pytest.mark.timeout(900)
@pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")
@pytest.mark.skipif(not Balancer.is_installed(), reason="nginx is not installed")
@pytest.mark.parametrize(
    ("sessions", "kills"),
    [(16, 1), pytest.param(64, 30, marks=pytest.mark.slow("30 restarts of servers; one of them is in `make test`"))],
)
async def test_sessions_lose_nothing_when_another_server_takes_them_over(
    bundles: Bundles, tmp_path: Path, sessions: int, kills: int
) -> None:
    outcome = await behind_balancer(Plan(bundles["lstm"].path, tmp_path, sessions, kills, rest=rest(kills)), quietly)
    assert outcome.verdict.reasons == []
    assert outcome.verdict.sound
    assert outcome.verdict.sessions == sessions
    assert outcome.busy_kills > 5 / 6 * kills
    assert outcome.verdict.calls > 500 * sessions * kills // (64 * 30)
    starts = [(tmp_path / f"server-{number}.log").read_text().count('"event": "listening"') for number in (1, 2)]
    assert sum(starts) == kills + 2
    assert min(starts) > kills // 6


@pytest.mark.slow("2 restarts of a server; what the check itself finds is in `make test`")
@pytest.mark.timeout(300)
async def test_a_store_that_acknowledges_before_it_writes_is_found(bundles: Bundles, tmp_path: Path) -> None:
    plan = Plan(bundles["lstm"].path, tmp_path, sessions=16, kills=2, rest=rest(2))
    outcome = await one_server(plan, quietly, "-m", "tests.support.broken_server")
    assert outcome.verdict.lost
    assert any(
        "received, but not held" in reason or "acknowledged, but" in reason for reason in outcome.verdict.reasons
    )


def sound_history() -> tuple[SessionHistory, dict[str, list[list[int]]]]:
    calls = [
        CallHistory("ab", 3, 2, [5, 6, 7], generated=3, end=7),
        CallHistory("", 2, 7, [8, 9], generated=2, end=9),
    ]
    held = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    return SessionHistory("s", 0, "xy", calls, held), {"s": [[5, 6, 7], [8, 9]]}


def test_a_sound_history_is_sound() -> None:
    history, unbroken = sound_history()
    verdict = check([history], unbroken)
    assert verdict.sound
    assert (verdict.sessions, verdict.calls, verdict.tokens) == (1, 2, 5)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a token not received", "lost"),
        ("a token received twice", "doubled"),
        ("another token", "different"),
        ("a token held otherwise", "different"),
        ("the last token not held", "lost"),
        ("a token held that nobody sent", "doubled"),
        ("acknowledged and gone", "lost"),
        ("there without having been acknowledged", "doubled"),
        ("a call that failed", "lost"),
    ],
)
def test_every_fault_is_found(name: str, found: str) -> None:
    history, unbroken = sound_history()
    faulty = deepcopy(history)
    first, last = faulty.calls
    if name == "a token not received":
        del last.tokens[0]
    elif name == "a token received twice":
        last.tokens.insert(0, 8)
    elif name == "another token":
        first.tokens[1] = 66
    elif name == "a token held otherwise":
        faulty.held[5] = 66
    elif name == "the last token not held":
        del faulty.held[-1]
    elif name == "a token held that nobody sent":
        faulty.held.append(10)
    elif name == "acknowledged and gone":
        last.conflict = 5
    elif name == "there without having been acknowledged":
        last.conflict = 8
    else:
        last.tokens, last.failure = [8], "gone"
    verdict = check([faulty], unbroken)
    assert getattr(verdict, found) > 0
    assert verdict.reasons
