"""Sessions over real gRPC with real models: each continues as if it had never been
interrupted, to the byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from elman import (
    Chunk,
    Client,
    ElmanError,
    GenerationStream,
    InvalidRequestError,
    OverloadedError,
    Session,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    UnavailableError,
    v1,
)
from elman_bundle import Bundle
from elman_server.sessions.stores.sqlite import SqliteStore
from tests.support.amount import examples
from tests.support.redis_server import redis_is_installed, redis_running
from tests.support.reference import generate_alone
from tests.support.serving import Running, serving

Bundles = Mapping[str, Bundle]

PROMPT = "once upon a time é語"
SEED = 11
LONG = examples(4_000, everything=30_000)  # tokens of a call that is still running when its server drains


def alone(bundle: Bundle, text: str, max_tokens: int, *, seed: int = SEED, temperature: float = 1.0) -> str:
    """The continuation of a session with the content `text`."""
    return generate_alone(bundle, text, max_tokens=max_tokens, temperature=temperature, seed=seed)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "redis":
        if not redis_is_installed():
            pytest.skip("redis-server is not installed")
        with redis_running(tmp_path) as redis:
            yield redis.url
    else:
        yield "memory" if request.param == "memory" else str(tmp_path / "sessions.db")


def kept(**changes: Any) -> dict[str, Any]:
    return {"snapshot_steps": 32, **changes}


async def some(stream: GenerationStream, count: int) -> list[int]:
    """The first tokens of a stream, `count` or more."""
    tokens: list[int] = []
    async for chunk in stream:
        tokens += chunk.token_ids
        if len(tokens) >= count:
            break
    return tokens


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm-int8"])
async def test_a_call_continues_where_the_last_one_finished(bundles: Bundles, name: str, store: str) -> None:
    async with serving(bundles[name], store=store, **kept()) as running:
        session = await running.client.create_session(PROMPT, seed=SEED)
        assert (session.position, session.model) == (len(PROMPT), name)
        text = PROMPT
        # No token, one, many; with and without a prompt; several snapshots.
        for prompt, count in (("", 40), ("", 1), ("xyz", 100), ("q", 3), ("", 1), ("a long way " * 9, 60), ("", 30)):
            stream = running.client.generate(prompt, session=session.session_id, max_tokens=count)
            found = await stream.text()
            assert found == alone(bundles[name], text + prompt, count)
            assert stream.seed == SEED
            assert stream.session_position_before == len(text)
            text += prompt + found
            assert stream.session_position == len(text)
        content = await running.client.session_tokens(session.session_id)
        assert content.text == text
        assert content.session.position == len(text) == len(content.token_ids)


async def test_a_session_can_start_empty_and_a_call_can_bring_its_own_seed(bundles: Bundles, store: str) -> None:
    async with serving(bundles["lstm"], store=store) as running:
        session = await running.client.create_session()
        assert session.position == 0
        with pytest.raises(InvalidRequestError, match=r"text: got an empty prompt; session '.*' is empty") as caught:
            await running.client.generate(session=session.session_id).text()
        assert list(caught.value.fields) == ["text"]
        stream = running.client.generate("ab", session=session.session_id, seed=5, max_tokens=20, temperature=0.5)
        assert await stream.text() == alone(bundles["lstm"], "ab", 20, seed=5, temperature=0.5)


async def test_a_fork_continues_like_a_new_session_with_its_text(bundles: Bundles, store: str) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, store=store, **kept()) as running:
        client = running.client
        session = await client.create_session(PROMPT, seed=SEED)
        text = PROMPT + await client.generate(session=session.session_id, max_tokens=200).text()
        for position in (None, len(text) - 1, 150, 20, 1):
            fork = await client.fork_session(session.session_id, position=position, seed=3)
            held = text[:position]
            assert fork.position == len(held)
            found = await client.generate("!?"[:1], session=fork.session_id, max_tokens=30).text()
            assert found == alone(bundle, held + "!"[:1], 30, seed=3)
        same = await client.fork_session(session.session_id)
        assert same.seed == SEED
        # The parent is unchanged.
        assert (await client.get_session(session.session_id)).position == len(text)
        assert await client.generate(session=same.session_id, max_tokens=9).text() == alone(bundle, text, 9)
        with pytest.raises(
            SessionConflictError, match=f"position: got 9999; session '.*' reaches from 0 to {len(text)}"
        ) as caught:
            await client.fork_session(session.session_id, position=9999)
        assert caught.value.position == len(text)
        with pytest.raises(SessionExistsError, match="a session with this id exists"):
            await client.fork_session(session.session_id, new_session_id=same.session_id)


async def test_a_rewound_session_continues_as_if_nothing_had_followed(bundles: Bundles, store: str) -> None:
    bundle = bundles["gru"]
    async with serving(bundle, store=store, **kept()) as running:
        client = running.client
        session = (await client.create_session(PROMPT, seed=SEED)).session_id
        text = PROMPT + await client.generate(session=session, max_tokens=300, request_id="first").text()
        for position in (310, 200, 199, 37, 1):
            assert (await client.rewind_session(session, position)).position == position
            assert (await client.session_tokens(session)).text == text[:position]
            found = await client.generate("z", session=session, max_tokens=5, request_id="again").text()
            assert found == alone(bundle, text[:position] + "z", 5)
            await client.rewind_session(session, position)
        # The calls after that position are forgotten, too.
        text = text[:1] + await client.generate(session=session, max_tokens=30, request_id="first").text()
        assert text == text[:1] + alone(bundle, text[:1], 30)
        await client.rewind_session(session, 0)
        assert await client.generate("ab", session=session, max_tokens=7).text() == alone(bundle, "ab", 7)


async def test_a_repeated_call_is_not_run_again(bundles: Bundles, store: str) -> None:
    async with serving(bundles["lstm"], store=store) as running:
        client = running.client
        session = (await client.create_session(PROMPT, seed=SEED)).session_id
        again: dict[str, Any] = {"session": session, "max_tokens": 50, "request_id": "once", "position": len(PROMPT)}
        expected = alone(bundles["lstm"], PROMPT + "x", 50)
        assert await client.generate("x", **again).text() == expected
        for received in (0, 1, 30, 50):
            stream = client.generate("x", **again, received_token_count=received)
            assert await stream.text() == expected[received:]
            assert stream.generated_token_count == 50
            assert stream.session_position == len(PROMPT) + 51
        assert (await client.get_session(session)).position == len(PROMPT) + 51
        with pytest.raises(InvalidRequestError, match=r"a different request on session '.*' has used it") as caught:
            await client.generate("y", **again).text()
        assert caught.value.reason == "REQUEST_MISMATCH"
        with pytest.raises(InvalidRequestError, match="received_token_count: got 51; this call has generated 50"):
            await client.generate("x", **again, received_token_count=51).text()
        with pytest.raises(
            SessionConflictError, match=r"session\.position: got 19; session '.*' is at position 70"
        ) as conflict:
            await client.generate("x", **{**again, "request_id": "twice"}).text()
        assert conflict.value.position == len(PROMPT) + 51
        assert conflict.value.reason == "POSITION_MISMATCH"


async def test_a_broken_stream_resumes_after_the_received_tokens(bundles: Bundles, store: str) -> None:
    bundle = bundles["lstm"]
    expected = alone(bundle, PROMPT + "x", 2000)
    async with serving(bundle, store=store, **kept()) as running:
        client = running.client
        session = (await client.create_session(PROMPT, seed=SEED)).session_id
        call: dict[str, Any] = {"session": session, "max_tokens": 2000, "request_id": "once", "interval": 0.0}
        received, text, breaks = 0, "", 0
        while received < 2000:
            stream, enough = client.generate("x", **call, received_token_count=received), received + 100
            async for chunk in stream:
                received += len(chunk.token_ids)
                text += chunk.text
                if enough <= received < 1900:
                    breaks += 1
                    break
        assert text == expected
        assert breaks > 3
        await running.until_free(session)
        assert (await client.get_session(session)).position == len(PROMPT) + 2001


async def test_two_streams_of_one_call_receive_the_same(bundles: Bundles, store: str) -> None:
    expected = alone(bundles["lstm"], PROMPT, 3000)
    async with serving(bundles["lstm"], store=store) as running:
        session = (await running.client.create_session(PROMPT, seed=SEED)).session_id
        call: dict[str, Any] = {"session": session, "max_tokens": 3000, "request_id": "once", "interval": 0.0}
        first = running.client.generate(**call)
        head = await some(first, 5)  # Then its stream is cancelled.
        second, third = running.client.generate(**call), running.client.generate(**call, received_token_count=len(head))
        texts = await asyncio.gather(second.text(), third.text())
    assert texts == [expected, expected[len(head) :]]


async def test_an_interrupted_call_can_be_continued_until_another_call_advances_the_session(
    bundles: Bundles, store: str
) -> None:
    async with serving(bundles["lstm"], store=store) as running:
        client = running.client
        session = (await client.create_session(PROMPT, seed=SEED)).session_id
        call: dict[str, Any] = {"session": session, "max_tokens": 60_000, "interval": 0.0}
        seen = await some(client.generate(**call, request_id="broken"), 10)
        await running.until_free(session)
        content = await client.session_tokens(session)
        assert content.token_ids[len(PROMPT) :][: len(seen)] == tuple(seen)
        found = await client.generate("q", session=session, max_tokens=20).text()
        assert found == alone(bundles["lstm"], content.text + "q", 20)
        with pytest.raises(SessionConflictError, match="this call was interrupted at position") as caught:
            await client.generate(**call, request_id="broken").text()
        assert caught.value.position == content.session.position + 21


async def test_of_two_concurrent_writers_one_wins_at_each_position_and_the_other_fails(
    bundles: Bundles, store: str
) -> None:
    bundle = bundles["gru"]
    async with serving(bundle, store=store) as running:
        session = (await running.client.create_session(PROMPT, seed=SEED)).session_id
        history: list[tuple[int, str, str]] = []
        refused = 0

        async def drive(client: Client, name: str) -> None:
            nonlocal refused
            position = len(PROMPT)
            for number in range(12):
                stream = client.generate(name, session=session, position=position, max_tokens=1 + number)
                try:
                    text = await stream.text()
                    assert stream.session_position is not None
                    history.append((position, name, text))
                    position = stream.session_position
                except SessionConflictError as error:
                    refused += 1
                    position = error.position

        async with Client(running.address) as other:
            await asyncio.gather(drive(running.client, "a"), drive(other, "b"))
        text = PROMPT
        for position, name, found in sorted(history):
            assert position == len(text)  # One winner at each position, no gap, no repetition.
            assert found == alone(bundle, text + name, len(found))
            text += name + found
        assert (await running.client.session_tokens(session)).text == text
        assert refused
        assert len(history) + refused == 24


async def test_other_calls_fail_while_one_runs_and_deleting_ends_it(bundles: Bundles, store: str) -> None:
    async with serving(bundles["lstm"], store=store) as running:
        client = running.client
        session = (await client.create_session(PROMPT, seed=SEED)).session_id
        stream = client.generate(session=session, max_tokens=60_000, request_id="long", interval=0.0)
        chunks = aiter(stream)
        await anext(chunks)
        assert (await client.get_session(session)).running
        with pytest.raises(SessionConflictError, match="a call is running on this session") as caught:
            await client.generate(session=session).text()
        assert caught.value.reason == "SESSION_BUSY"
        with pytest.raises(SessionConflictError, match="a call is running on this session"):
            await client.rewind_session(session, 1)
        fork = await client.fork_session(session)  # A running session can be forked.
        assert fork.position > len(PROMPT)
        await client.delete_session(session)
        with pytest.raises(SessionNotFoundError, match="the session has been deleted during this call"):
            async for _ in chunks:
                pass
        with pytest.raises(SessionNotFoundError, match=f"session_id: got '{session}'; there is no such session"):
            await client.get_session(session)
        assert [found.session_id async for found in client.list_sessions()] == [fork.session_id]


async def test_labels_of_a_session_equal_those_of_its_complete_input(bundles: Bundles, store: str) -> None:
    text = "The quick brown fox. " * 9
    async with serving(bundles["tags"], bundles["classes"], store=store, **kept()) as running:
        client = running.client
        for model in ("tags", "classes"):
            whole = await client.classify(text, model=model)
            session = (await client.create_session(model=model)).session_id
            steps = list[object]()
            for start, end in ((0, 1), (1, 2), (2, 90), (90, len(text))):
                call: dict[str, Any] = {"session": session, "position": start, "request_id": f"from {start}"}
                part = await client.classify(text[start:end], **call)
                assert part == await client.classify(text[start:end], **{**call, "position": 3})  # Not run again.
                assert part.session_position == end
                steps += part.steps
            assert tuple(steps) == whole.steps
            assert part.labels == whole.labels
            with pytest.raises(SessionConflictError):
                await client.classify("x", session=session, position=1)
            # As a stream of pieces, starting in the middle.
            await client.rewind_session(session, 50)
            pieces = [text[50:51], "", text[51:100], text[100:]]
            results = [result async for result in client.stream_classify(pieces, session=session, position=50)]
            assert [result.session_position for result in results] == [51, 51, 100, len(text)]
            assert tuple(step for result in results for step in result.steps) == whole.steps[50:]
            assert results[-1].labels == whole.labels
            with pytest.raises(SessionConflictError) as caught:
                await anext(client.stream_classify(["x"], session=session, position=7))
            assert caught.value.position == len(text)


async def test_pieces_of_a_stream_can_have_request_ids(bundles: Bundles, store: str) -> None:
    async with serving(bundles["tags"], store=store) as running:
        session = (await running.client.create_session()).session_id
        config = v1.StreamConfig(session=v1.SessionCall(session_id=session))
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub = v1.InferenceServiceStub(channel)
            answers = []
            for names in (["one", "two"], ["two", "three"]):
                call = stub.StreamClassify()
                await call.write(v1.StreamClassifyRequest(config=config))
                await call.read()
                for name in names:
                    await call.write(v1.StreamClassifyRequest(piece=v1.Piece(text=name, request_id=name)))
                    answers.append((await call.read()).result)
                await call.done_writing()
                await call.read()
        assert [answer.session_position for answer in answers] == [3, 6, 6, 11]
        assert answers[1].prediction.steps == answers[2].prediction.steps
        whole = await running.client.classify("onetwothree")
        steps = [step.label for answer in (answers[0], answers[1], answers[3]) for step in answer.prediction.steps]
        assert steps == [step.name for step in whole.steps]


async def test_an_exported_session_continues_on_another_server(bundles: Bundles, store: str) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, store=store) as running:
        session = (await running.client.create_session(PROMPT, seed=SEED)).session_id
        text = PROMPT + await running.client.generate(session=session, max_tokens=90).text()
        content = await running.client.export_session(session)
    async with serving(bundle, bundles["gru"]) as running:
        client = running.client
        moved = await client.import_session(content)
        assert (moved.session_id, moved.position, moved.seed, moved.model) == (session, len(text), SEED, "lstm")
        assert await client.generate(session=session, max_tokens=40).text() == alone(bundle, text, 40)
        with pytest.raises(SessionExistsError):
            await client.import_session(content)
        assert (await client.import_session(content, session_id="copy")).session_id == "copy"
        back = await client.rewind_session("copy", 30)
        assert await client.generate(session=back.session_id, max_tokens=9).text() == alone(bundle, text[:30], 9)


async def test_a_file_of_another_bundle_or_a_damaged_one_is_refused(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        session = await running.client.create_session(PROMPT, session_id="mine")
        content = await running.client.export_session(session.session_id)
        await running.client.delete_session(session.session_id)
        refused = 0
        for place in np.random.default_rng(0).integers(0, len(content), 200):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(place % 8)
            with contextlib.suppress(ElmanError):
                await running.client.import_session(bytes(damaged), session_id="damaged")
                pytest.fail(f"a file whose byte {place} was changed has been taken")
            refused += 1
        assert refused == 200
        for part in (b"", content[:-1], content[: len(content) // 2], b"something else"):
            with pytest.raises(InvalidRequestError) as caught:
                await running.client.import_session(part, session_id="damaged")
            assert list(caught.value.fields) == ["content"]
    async with serving(_renamed(bundles["gru"], "lstm")) as running:
        with pytest.raises(
            InvalidRequestError, match=r"content: got a state of .*, and a state is valid for its own bundle only"
        ) as other:
            await running.client.import_session(content)
        assert other.value.reason == "BUNDLE_MISMATCH"


def _renamed(bundle: Bundle, name: str) -> Bundle:
    """Another model with the same name, as after a new training."""
    spec = v1.ModelSpec()
    spec.CopyFrom(bundle.spec)
    spec.name = name
    return replace(bundle, spec=spec)


async def test_sessions_of_another_bundle_are_kept_and_not_continued(bundles: Bundles, tmp_path: Path) -> None:
    store = str(tmp_path / "sessions.db")
    async with serving(bundles["lstm"], store=store) as running:
        await running.client.create_session(PROMPT, session_id="old")
    async with serving(_renamed(bundles["gru"], "lstm"), store=store) as running:
        for call in (
            running.client.generate(session="old").text(),
            running.client.fork_session("old"),
            running.client.rewind_session("old", 0),
            running.client.export_session("old"),
        ):
            with pytest.raises(InvalidRequestError, match=r"session '.*': got a state of 'lstm' sha256:") as caught:
                await call
            assert caught.value.reason == "BUNDLE_MISMATCH"
        assert (await running.client.session_tokens("old")).text == PROMPT


async def test_sessions_outlive_the_server(bundles: Bundles, tmp_path: Path) -> None:
    bundle, store = bundles["lstm"], str(tmp_path / "sessions.db")
    text = PROMPT
    for round_number in range(3):
        async with serving(bundle, store=store) as running:
            if not round_number:
                await running.client.create_session(PROMPT, session_id="story", seed=SEED)
            call: dict[str, Any] = {"session": "story", "max_tokens": 50, "request_id": str(round_number)}
            found = await running.client.generate(**call).text()
            assert found == alone(bundle, text, 50)
            text += found
        async with serving(bundle, store=store) as running:  # The finished calls are remembered, too.
            assert await running.client.generate(**call).text() == found


async def test_sessions_are_dropped_from_memory_and_loaded_again(bundles: Bundles, tmp_path: Path) -> None:
    bundle, store = bundles["lstm"], str(tmp_path / "sessions.db")
    async with serving(bundle, store=store, **kept(memory_bytes=20_000)) as running:
        client = running.client
        texts = {}
        for number in range(40):
            prompt = f"{PROMPT} {chr(97 + number % 26) * (number + 1)}"
            session = await client.create_session(prompt, seed=number)
            texts[session.session_id] = prompt
        cache = running.server._resources.sessions._registry.cache
        assert len(cache._sessions) < 20
        for _ in range(2):
            for number, (session_id, text) in enumerate(texts.items()):
                found = await client.generate(session=session_id, max_tokens=5).text()
                assert found == alone(bundle, text, 5, seed=number)
                texts[session_id] = text + found
        resident = sum(session.size for session in cache._sessions.values())
        assert cache._bytes == resident <= 20_000


async def test_a_caller_has_a_limited_number_of_sessions_and_unused_ones_expire(bundles: Bundles, store: str) -> None:
    async with serving(bundles["lstm"], store=store, **kept(sessions_per_caller=2, session_ttl=1.2)) as running:
        async with Client(running.address, caller="me") as me, Client(running.address, caller="you") as you:
            for client in (me, you):
                # However many are created concurrently.
                at_once = [client.create_session("a") for _ in range(5)]
                made = await asyncio.gather(*at_once, return_exceptions=True)
                assert sum(isinstance(found, OverloadedError) for found in made) == 3
                fork = next(found for found in made if isinstance(found, Session))
                with pytest.raises(OverloadedError, match="a caller may have at most 2") as caught:
                    await client.fork_session(fork.session_id)
                assert caught.value.reason == "SESSION_LIMIT"
            await me.delete_session(fork.session_id)
            await you.create_session("c")
        async with asyncio.timeout(10):
            while [found async for found in running.client.list_sessions()]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


FORKS = examples(200, everything=1000)


async def test_forks_cost_only_their_states(bundles: Bundles, store: str) -> None:
    """Forks of a session with 2,000 tokens: creating them runs no step, and each continues like the complete text."""
    bundle = bundles["gru"]
    async with serving(bundle, store=store, slots=32) as running:
        client = running.client
        text = "".join(np.random.default_rng(0).choice(list("abcdefgh ijk"), 2000).tolist())
        parent = (await client.create_session(text)).session_id
        runs = _count_steps(running)
        children = await asyncio.gather(*(client.fork_session(parent, seed=seed) for seed in range(FORKS)))
        assert not runs
        assert {child.position for child in children} == {2000}
        resident = running.server._resources.sessions._registry.cache._sessions
        state = len(resident[parent].snapshots[-1].state)
        assert {len(resident[child.session_id].snapshots) for child in children} == {1}
        assert {len(resident[child.session_id].snapshots[0].state) for child in children} == {state}
        chosen = children[:: FORKS // 10]
        found = await asyncio.gather(
            *(client.generate(session=child.session_id, max_tokens=12).text() for child in chosen)
        )
        assert found == [alone(bundle, text, 12, seed=child.seed) for child in chosen]
        assert sum(runs) < 12 * 12 * len(chosen)  # No fork has read the text again.


def _count_steps(running: Running) -> list[int]:
    """Record the number of steps of each run, added up over its rows."""
    (model,) = running.server.models
    engine: Any = model.scheduler._batch._engine
    counts: list[int] = []
    run = engine.run

    def counted(rows: range, chunk: Any, **how: bool) -> Any:
        counts.append(len(rows) * len(chunk))
        return run(rows, chunk, **how)

    engine.run = counted
    return counts


async def test_tokens_that_the_store_does_not_have_are_not_delivered(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, store=str(tmp_path / "sessions.db"), **kept()) as running:
        client = running.client
        await client.create_session(PROMPT, session_id="full", seed=SEED)
        sqlite = running.server._resources.sessions._store
        assert isinstance(sqlite, SqliteStore)
        (pages,) = sqlite._database.connection.execute("PRAGMA page_count").fetchone()
        sqlite._database.connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        stream = client.generate(session="full", max_tokens=60_000, interval=0.0, request_id="long")
        text, error = await _until_error(stream)
        assert isinstance(error, OverloadedError)
        assert (error.reason, "there is no space left for sessions" in str(error)) == ("STORE_FULL", True)
        with pytest.raises(OverloadedError, match="no space left"):
            await client.create_session("x" * 5000)
        # The delivered tokens are stored, and the session continues when there is space.
        held = (await client.session_tokens("full")).text
        assert held == PROMPT + text
        sqlite._database.connection.execute("PRAGMA max_page_count = 100000")
        found = await client.generate(session="full", max_tokens=30).text()
        assert found == alone(bundle, held, 30)


async def _until_error(chunks: AsyncIterable[Chunk]) -> tuple[str, ElmanError | None]:
    text = ""
    try:
        async for chunk in chunks:
            text += chunk.text
    except ElmanError as error:
        return text, error
    return text, None


async def test_a_stream_that_draining_ends_is_continued_by_another_server(bundles: Bundles, tmp_path: Path) -> None:
    bundle, store = bundles["lstm"], str(tmp_path / "sessions.db")
    call: dict[str, Any] = {"session": "story", "max_tokens": 4_000, "request_id": "long", "interval": 0.0}
    async with serving(bundle, store=store, drain_timeout=0.0) as running:
        await running.client.create_session(PROMPT, session_id="story", seed=SEED)
        stream = running.client.generate(**call)
        chunks = aiter(stream)
        text = (await anext(chunks)).text
        broken = asyncio.create_task(_until_error(chunks))
        await running.server.drain()
        more, error = await broken
        assert isinstance(error, UnavailableError)
        text += more
    async with serving(bundle, store=store) as running:
        text += await running.client.generate(**call, received_token_count=len(text)).text()
    assert text == alone(bundle, PROMPT, 4_000)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"session": v1.SessionCall()}, "session.session_id"),
        ({"session": v1.SessionCall(session_id="s", position=-1)}, "session.position"),
        ({"session": v1.SessionCall(session_id="s", request_id="x" * 65)}, "session.request_id"),
        ({"session": v1.SessionCall(session_id="s"), "received_token_count": 3}, "received_token_count"),
        (
            {"session": v1.SessionCall(session_id="s", request_id="x"), "received_token_count": -3},
            "received_token_count",
        ),
        ({"received_token_count": 3}, "received_token_count"),
    ],
)
async def test_every_error_names_its_field(bundles: Bundles, change: dict[str, Any], field: str) -> None:
    async with serving(bundles["lstm"]) as running, grpc.aio.insecure_channel(running.address) as channel:
        await running.client.create_session("a", session_id="s")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in v1.InferenceServiceStub(channel).Generate(v1.GenerateRequest(text="a", **change)):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.details() or "").startswith(f"{field}: ")


async def test_errors_of_session_calls_have_their_reasons(bundles: Bundles) -> None:
    async with serving(bundles["lstm"], bundles["gru"]) as running:
        client = running.client
        with pytest.raises(InvalidRequestError, match="model: got none; 2 models of this server can keep"):
            await client.create_session("a")
        with pytest.raises(InvalidRequestError, match=r"session_id: got '.*'; must be 1 to 64 letters"):
            await client.create_session("a", session_id="a b", model="gru")
        with pytest.raises(SessionNotFoundError, match="session_id: got 'none'; there is no such session") as caught:
            await client.generate(session="none").text()
        assert caught.value.reason == "SESSION_NOT_FOUND"
        for number in range(5):
            await client.create_session("a", session_id=f"s{number}", model="gru")
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub = v1.SessionServiceStub(channel)
            page = await stub.ListSessions(v1.ListSessionsRequest(page_size=3))
            assert [session.session_id for session in page.sessions] == ["s0", "s1", "s2"]
            rest = await stub.ListSessions(v1.ListSessionsRequest(page_size=3, page_token=page.next_page_token))
            assert [session.session_id for session in rest.sessions] == ["s3", "s4"]
            assert not rest.next_page_token
            for request in (v1.RewindSessionRequest(session_id="s0"), v1.ListSessionsRequest(page_size=-1)):
                method = stub.RewindSession if isinstance(request, v1.RewindSessionRequest) else stub.ListSessions
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await method(request)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")
async def test_a_redis_that_is_away_for_five_seconds_only_delays_calls(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles["lstm"]
    with redis_running(tmp_path) as redis:
        async with serving(bundle, store=redis.url, **kept()) as running:
            client = running.client
            session = (await client.create_session(PROMPT, seed=SEED)).session_id
            stream = client.generate(session=session, max_tokens=5000, interval=0.0, request_id="long")
            chunks = aiter(stream)
            text = (await anext(chunks)).text
            redis.freeze()
            await asyncio.sleep(5)
            redis.thaw()
            async for chunk in chunks:
                text += chunk.text
            assert text == alone(bundle, PROMPT, 5000)
            assert (await client.session_tokens(session)).text == PROMPT + text


@pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")
async def test_two_servers_take_turns_on_a_session(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles["gru"]
    with redis_running(tmp_path) as redis:
        async with (
            serving(bundle, store=redis.url, **kept()) as one,
            serving(bundle, store=redis.url, **kept(), drain_timeout=0.2) as other,
        ):
            session = (await one.client.create_session(PROMPT, seed=SEED)).session_id
            text = PROMPT
            for number in range(12):  # Each continues after the last call on the other.
                client = (one, other, other, one)[number % 4].client
                found = await client.generate("y", session=session, max_tokens=10 + number).text()
                assert found == alone(bundle, text + "y", 10 + number)
                text += "y" + found
            # A call on one server waits for a call on the other.
            call: dict[str, Any] = {"session": session, "max_tokens": 3000, "request_id": "long", "interval": 0.0}
            stream = other.client.generate(**call)
            chunks = aiter(stream)
            head = (await anext(chunks)).text
            waiting = asyncio.create_task(one.client.generate(**call, received_token_count=len(head)).text())
            more, _ = await _until_error(chunks)
            rest = await waiting
            assert head + rest == alone(bundle, text, 3000)
            assert (head + rest).startswith(head + more)


@pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")
async def test_a_new_session_with_an_old_id_is_not_mistaken_for_the_old_one(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles["gru"]
    with redis_running(tmp_path) as redis:
        async with serving(bundle, store=redis.url) as one, serving(bundle, store=redis.url) as other:
            for prompt, client in ((PROMPT, one.client), (PROMPT[::-1], other.client)):
                await client.create_session(prompt, session_id="s", seed=SEED)
                await client.generate(session="s", max_tokens=5).text()
                if client is one.client:
                    await other.client.delete_session("s")
            assert (await one.client.session_tokens("s")).text.startswith(PROMPT[::-1])
            text = (await other.client.session_tokens("s")).text
            assert await one.client.generate(session="s", max_tokens=9).text() == alone(bundle, text, 9)


@pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed")
async def test_a_draining_server_hands_its_sessions_over(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles["lstm"]
    with redis_running(tmp_path) as redis:
        async with (
            serving(bundle, store=redis.url, drain_timeout=20.0) as one,
            serving(bundle, store=redis.url) as other,
        ):
            session = (await one.client.create_session(PROMPT, seed=SEED)).session_id
            call: dict[str, Any] = {"session": session, "max_tokens": LONG, "request_id": "long", "interval": 0.0}
            chunks = aiter(one.client.generate(**call))
            text = (await anext(chunks)).text
            broken = asyncio.create_task(_until_error(chunks))
            started = asyncio.get_running_loop().time()
            await one.server.drain()  # Draining does not wait for the end of the stream.
            assert asyncio.get_running_loop().time() - started < 15
            more, error = await broken
            assert isinstance(error, UnavailableError)
            assert error.reason == "SERVER_DRAINING"
            text += more
            text += await other.client.generate(**call, received_token_count=len(text)).text()
    assert text == alone(bundle, PROMPT, LONG)
