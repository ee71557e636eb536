"""An exception while an answer becomes messages, or while these are written, fails that one call with a named error.
All other calls get what they get alone, and the server serves."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from elman import Client, ElmanError
from elman_bundle import Bundle
from elman_server.rpc.responses import analysis, batches, choice, classification, generation, models, sessions
from elman_server.rpc.services import analysis as analysis_service
from elman_server.rpc.services import inference as inference_service
from elman_server.rpc.services import sessions as session_service
from elman_server.rpc.transport.writer import Writer
from tests.support.amount import examples
from tests.support.injection import nth, points_of, raising
from tests.support.serving import Running, serving

RESPONSES = (analysis, batches, choice, classification, generation, models, sessions)
SERVICES = (analysis_service, inference_service, session_service)
NUMBERS = [1, 2]  # which call raises
# Called in the background, for clients that do not read.
FOR_SLOW_CLIENTS = frozenset({"_check", "_schedule_check"})
# Called for a request that has failed already.
FOR_FAILURES = frozenset({"_failure"})

Calls = Mapping[str, Callable[[Client], Awaitable[object]]]


def is_own(module: ModuleType, name: str, value: object) -> bool:
    """Whether a function of the responses is called by this name of this module."""
    if not inspect.isfunction(value) or value.__module__ not in {each.__name__ for each in RESPONSES}:
        return False
    if name in FOR_FAILURES:
        return False
    return name.startswith("_") or value.__module__ != module.__name__


def points() -> Iterator[tuple[Any, str]]:
    for module in (*RESPONSES, *SERVICES):
        yield from ((module, name) for name, value in vars(module).items() if is_own(module, name, value))
    yield from points_of(analysis.ScoreResponses, Writer, leave_out=FOR_SLOW_CLIENTS)


POINTS = list(points())


async def collected(results: AsyncIterable[Any]) -> list[Any]:
    return [result async for result in results]


async def generated(client: Client) -> list[Any]:
    options = {"max_tokens": 20, "seed": 3, "log_probabilities": 2}
    chunks = await collected(client.generate("ab", model="gru", single_tokens=True, **options))
    return [(chunk.text, chunk.token_ids, chunk.reports) for chunk in chunks]


async def in_one_call(client: Client) -> list[Any]:
    async with client.many() as many:
        samples, labels = await asyncio.gather(
            asyncio.gather(*(many.sample(text, count=2, model="gru", max_tokens=5, seed=1) for text in ("a", "b"))),
            asyncio.gather(*(many.classify(text, model="classes") for text in ("ab", "cd"))),
        )
    # Not the steps: a prompt may have been read before.
    return [[(one.text, one.token_ids) for sample in samples for one in sample], labels]


async def in_a_session(client: Client) -> list[Any]:
    session = await client.create_session("ab", model="gru", seed=5)
    text = await client.generate(session=session.session_id, max_tokens=5).text()
    position = (await client.get_session(session.session_id)).position
    await client.delete_session(session.session_id)
    return [text, position]


async def of_a_stream(client: Client) -> list[Any]:
    return [one.steps for one in await collected(client.stream_classify(["a", "bc"], model="tags"))]


async def described(client: Client) -> list[Any]:
    model = await client.get_model("gru")
    return [model.name, model.digest]


CALLS: Calls = {
    "generate": generated,
    "many": in_one_call,
    "session": in_a_session,
    "classify": lambda client: client.classify("abc", model="classes"),
    "stream_classify": of_a_stream,
    "choose": lambda client: client.choose(["a", "bc"], prompt="x", model="gru"),
    "score": lambda client: collected(client.score_candidates(["a", "bcd"], context="x", model="gru")),
    "embed": lambda client: client.embed(["a", "bcd"], model="gru"),
    "inspect": lambda client: collected(client.inspect("abc", model="gru")),
    "model": described,
}


async def all_results(client: Client) -> dict[str, object]:
    """Make all calls at once; returns what each brought, or its error."""
    found = await asyncio.gather(*(call(client) for call in CALLS.values()), return_exceptions=True)
    return {
        name: result if isinstance(result, BaseException) else repr(result)
        for name, result in zip(CALLS, found, strict=True)
    }


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Defects are logged, each with its traceback."""
    with capture_logs():
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(bundles: Mapping[str, Bundle]) -> AsyncIterator[Running]:
    async with serving(bundles["gru"], bundles["tags"], bundles["classes"]) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(running: Running) -> dict[str, object]:
    """What each call brings alone."""
    return {name: repr(await call(running.client)) for name, call in CALLS.items()}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", examples(NUMBERS[:1], everything=NUMBERS))
@pytest.mark.parametrize(("owner", "name"), POINTS, ids=[f"{owner.__name__}-{name}" for owner, name in POINTS])
async def test_a_defect_fails_one_call(
    running: Running, expected: dict[str, object], owner: Any, name: str, number: int
) -> None:
    async with asyncio.timeout(15):
        with raising(owner, name, nth(number)) as injection:
            found = await all_results(running.client)
        assert injection.raised == (injection.calls >= number)
        assert injection.raised or number > 1
        failed = {name: result for name, result in found.items() if isinstance(result, BaseException)}
        assert len(failed) == injection.raised
        for error in failed.values():
            assert isinstance(error, ElmanError)
            assert error.reason == "INTERNAL"
        assert {**found, **{name: expected[name] for name in failed}} == expected
        assert await all_results(running.client) == expected
