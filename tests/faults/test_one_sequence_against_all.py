"""A defect that one sequence meets ends that sequence with a named error; all others are what they are alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pytest

from elman import ElmanError
from elman_bundle import Bundle
from elman_server.decoding.beams import BeamParams, BeamSearch
from elman_server.decoding.constraints import Constraint, ConstraintKind, Grammars
from elman_server.decoding.constraints.matching import Matcher
from elman_server.decoding.host.shaped_rows import ShapedRows
from elman_server.decoding.host.shaping import Shaping
from elman_server.event_loop import ServerEventLoop
from elman_server.inference.delivery import deliver_into
from elman_server.scheduling import (
    Beams,
    Emission,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Reading,
    SamplingParams,
    Sequence,
    Tokens,
)
from elman_server.scheduling.rows import batch, constrained_rows, host_sampler
from elman_server.scheduling.rows.host_sampler import HostSampler
from elman_server.scheduling.rows.inputs import RowInputs
from elman_server.scheduling.rows.table import RowTable
from tests.support.fake_engine import LETTERS, FakeEngine, continuation
from tests.support.reference import generate_alone
from tests.support.scheduling import Inbox, generation, inbox, make_scheduler, reading, until_running
from tests.support.serving import serving


class DefectError(Exception):
    """Raised in place of what a sequence needs."""


def defect(*_: object, **__: object) -> NoReturn:
    raise DefectError


class Broken:
    """Raises whatever is done with it."""

    start = feed = defect


def sampled(**changes: Any) -> Generation:
    options = {name: changes.pop(name) for name in ("stop", "report_count", "keep_state") if name in changes}
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=9, **changes)
    return Generation(np.array([1, 2]), Inbox(), params=params, **options)


def constrained() -> Generation:
    grammars = Grammars([None, *(letter.encode() for letter in LETTERS[1:])], None)
    return sampled(grammar=grammars.compile(Constraint(ConstraintKind.REGEX, "[a-i]*")))


def search(**changes: Any) -> Beams:
    return Beams(np.array([1, 2]), Inbox(), params=BeamParams(2, 2, 5, None), **changes)


def shaped_search() -> Beams:
    return search(shaping=Shaping(repetition_penalty=1.5))


@dataclass(frozen=True)
class Point:
    """Where a defect is met.

    Attributes:
        victim: makes the sequence that meets it; no other sequence gets there.
        owner: whose attribute raises; None: the sequence brings the defect along.
        name: the attribute.
    """

    victim: Callable[[], Sequence]
    owner: object = None
    name: str = ""


POINTS = {
    "grammar is started": Point(lambda: sampled(grammar=Broken())),
    "shaping is prepared": Point(lambda: sampled(shaping=Shaping(repetition_penalty=1.5)), ShapedRows, "append"),
    "state is inserted": Point(lambda: generation([1], 5, state={})),
    "grammar allows": Point(constrained, constrained_rows, "allowed_tokens"),
    "token is chosen": Point(constrained, host_sampler, "choose_tokens"),
    "grammar accepts": Point(constrained, Matcher, "accept"),
    "token is reported": Point(lambda: sampled(report_count=2), batch, "reports_of"),
    "stop sequence is looked for": Point(lambda: sampled(stop=Broken())),
    "beams are scored": Point(shaped_search, host_sampler, "shape_scores"),
    "beams advance": Point(search, BeamSearch, "advance"),
    "beams branch": Point(shaped_search, HostSampler, "branch"),
    "search ends": Point(search, BeamSearch, "results"),
    "outputs are taken": Point(lambda: reading([1, 2, 3], every_step=True), Reading, "show"),
    "reading ends": Point(lambda: reading([1, 2, 3]), Reading, "finished"),
    "state is extracted": Point(lambda: sampled(keep_state=True), FakeEngine, "extract"),
    "snapshot is taken": Point(lambda: generation([1], 30, snapshot_steps=2), FakeEngine, "extract"),
    "steps are replayed": Point(
        lambda: generation([1, 2], 20, end_token=continuation([1, 2], 9)[4], keep_state=True), FakeEngine, "replay"
    ),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_defect_ends_the_sequence_that_meets_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = POINTS[name]
    if point.owner is not None:
        monkeypatch.setattr(point.owner, point.name, defect)
    scheduler = make_scheduler(FakeEngine(capacity=8))
    prompts = [[number] for number in range(1, 5)]
    others = [generation(prompt, 40) for prompt in prompts]
    victim = point.victim()
    for sequence in (*others[:2], victim, *others[2:]):
        scheduler.submit(sequence)
    scheduler.start()
    try:
        _, end = inbox(victim).tokens_and_end()
        assert isinstance(end, Failed)
        assert str(end.error) == "internal error"
        for prompt, other in zip(prompts, others, strict=True):
            tokens, end = inbox(other).tokens_and_end()
            assert not isinstance(end, Failed)
            assert tokens == continuation(prompt, 40)
        until_running(scheduler, 0)
        later = generation([3], 9)  # All rows can be used again.
        scheduler.submit(later)
        assert inbox(later).tokens_and_end()[0] == continuation([3], 9)
        assert inbox(victim).events.empty()
    finally:
        scheduler.stop()


@pytest.mark.parametrize(
    ("resumed", "owner", "name"),
    [
        (False, FakeEngine, "extract"),
        (True, RowTable, "restore"),
        (True, RowInputs, "append"),
    ],
)
def test_a_defect_while_a_sequence_is_preempted_ends_that_one(
    monkeypatch: pytest.MonkeyPatch, resumed: bool, owner: object, name: str
) -> None:
    scheduler = make_scheduler(FakeEngine(capacity=8))
    prompts = [[number] for number in range(1, 5)]
    others = [generation(prompt, 10**6) for prompt in prompts]
    victim = generation([2, 2], 10**6)
    for sequence in (*others[:2], victim, *others[2:]):
        scheduler.submit(sequence)
    scheduler.start()
    try:
        until_running(scheduler, 5)
        if resumed:
            scheduler.set_paused(victim, paused=True)
            until_running(scheduler, 4)
        monkeypatch.setattr(owner, name, defect)
        scheduler.set_paused(victim, paused=not resumed)
        tokens, end = inbox(victim).tokens_and_end()
        assert isinstance(end, Failed)
        assert str(end.error) == "internal error"
        assert tokens == continuation([2, 2], len(tokens))
        monkeypatch.undo()
        until_running(scheduler, 4)
        later = generation([3], 9)
        scheduler.submit(later)
        assert inbox(later).tokens_and_end()[0] == continuation([3], 9)
    finally:
        scheduler.stop()
    for prompt, other in zip(prompts, others, strict=True):
        tokens, _ = inbox(other).tokens_and_end()
        assert tokens == continuation(prompt, len(tokens))


EXTREME: dict[str, Any] = {"repetition_penalty": 1e-38, "logit_bias": {5: 1e4}}


@pytest.mark.parametrize("width", [1, 3])
async def test_scores_that_overflow_end_only_their_search(bundles: Mapping[str, Bundle], width: int) -> None:
    async with serving(bundles["lstm"], slots=48) as running:
        client = running.client
        requests = [{"prompt": "ab", "max_tokens": 400, "temperature": 1.0, "seed": seed} for seed in range(40)]
        streams = [asyncio.create_task(client.generate(**request).text()) for request in requests]
        for _ in range(3):
            with pytest.raises(ElmanError, match="scores: got NaN or \\+inf for beam") as caught:
                await client.search("ab", width=width, max_tokens=40, **EXTREME)
            assert "repetition_penalty" in str(caught.value)
        texts = await asyncio.gather(*streams)
    assert texts == [generate_alone(bundles["lstm"], **request) for request in requests]


class Refusing(Inbox):
    def receive(self, event: Event) -> None:
        if isinstance(event, Tokens):
            raise DefectError
        super().receive(event)


class RefusingAll(Inbox):
    receive = defect  # type: ignore[assignment]


async def test_a_receiver_that_meets_a_defect_keeps_nothing_from_others() -> None:
    deliver = deliver_into(ServerEventLoop.running())
    before, after, refusing = Inbox(), Inbox(), Refusing()
    finished = Finished(FinishReason.MAX_TOKENS, 1)
    emissions: list[Emission] = [(before, Tokens((1,))), (refusing, Tokens((2,))), (RefusingAll(), finished)]
    await asyncio.to_thread(deliver, [*emissions, (after, Tokens((3,))), (after, finished)])
    assert before.events.get_nowait() == Tokens((1,))
    assert after.tokens_and_end() == ([3], finished)
    failed = refusing.events.get_nowait()
    assert isinstance(failed, Failed)
    assert str(failed.error) == "internal error"
