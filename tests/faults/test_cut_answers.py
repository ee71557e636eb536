"""What a call of a session is cut in the middle of belongs to the session: characters, the spaces of symbols, stop
sequences and matches of constraints. The answers to the calls are those of one call, wherever they are cut."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from elman import Client, FinishReason, InvalidRequestError
from elman_bundle import BEGIN, UNKNOWN, Bundle, SubwordVocabulary, SymbolVocabulary, load_bundle
from elman_export import Token
from elman_server.event_loop import ServerEventLoop
from elman_server.sessions.file import _checksum
from tests.support.amount import examples
from tests.support.bundles import byte_bundle, make_small_network, write_network
from tests.support.fake_engine import FakeEngine
from tests.support.paths import FIXTURES
from tests.support.serving import Running, serving, serving_fake
from tests.support.shared import shared_bundle


def symbol_bundle() -> Bundle:
    """A language model of symbols, whose sequences have a begin token."""
    token = Token(SymbolVocabulary([UNKNOWN, BEGIN, "AH", "B", "K"], 0), begin_id=1)
    return shared_bundle("symbols", lambda folder: write_network(make_small_network(5), folder, "symbols", token))


def subword_bundle() -> Bundle:
    """A language model of few subwords, most of them parts of characters."""
    vocabulary = SubwordVocabulary.from_texts(["語語語é🌲"], 258)
    network = make_small_network(vocabulary.size)
    token = Token(vocabulary)
    return shared_bundle("subwords-cut", lambda folder: write_network(network, folder, "subwords", token))


async def cut(client: Client, session: str, counts: list[int], **options: Any) -> tuple[str, str, FinishReason | None]:
    """The joined answers of calls of some tokens each, what is held back in the end, and why they ended."""
    text, stream = "", None
    for count in counts:
        stream = client.generate(session=session, max_tokens=count, **options)
        text += await stream.text()
        if stream.finish_reason is not FinishReason.MAX_TOKENS:
            break
    assert stream is not None
    return text, stream.held_text, stream.finish_reason


async def shown(client: Client, session: str) -> str:
    return (await client.session_tokens(session)).text


PROMPTS = {"bytes": "語", "subwords": "語a", "symbols": "AH B"}


@contextmanager
def server_of(*bundles: Bundle) -> Iterator[tuple[asyncio.Runner, Client]]:
    """A server for all examples of a property."""
    with asyncio.Runner(loop_factory=ServerEventLoop) as runner:
        server = serving(*bundles)
        running = runner.run(server.__aenter__())
        try:
            yield runner, running.client
        finally:
            runner.run(server.__aexit__(None, None, None))


def test_joined_answers_are_the_text_of_the_session() -> None:
    names = (f"s{number}" for number in itertools.count())
    cuts = st.lists(st.integers(1, 7), min_size=1, max_size=8)
    with server_of(byte_bundle(), subword_bundle(), symbol_bundle()) as (runner, client):

        @settings(max_examples=examples(8, everything=200), deadline=None)
        @given(st.sampled_from(sorted(PROMPTS)), cuts, st.integers(0, 99))
        def check(model: str, counts: list[int], seed: int) -> None:
            runner.run(compare(client, model, next(names), counts, seed))

        check()


async def compare(client: Client, model: str, session: str, counts: list[int], seed: int) -> None:
    prompt = PROMPTS[model]
    # The bias makes the bytes of a few characters probable.
    bias: dict[str, Any] = {"logit_bias": dict.fromkeys("é語".encode(), 4.0)} if model == "bytes" else {}
    await client.create_session(prompt, session_id=session, model=model, seed=seed)
    await client.fork_session(session, new_session_id=f"{session}-whole")
    text, held, _ = await cut(client, session, counts, **bias)
    assert (text, held) == (await cut(client, f"{session}-whole", [sum(counts)], **bias))[:2]
    content = await shown(client, session)
    assert prompt + text + held == content == await shown(client, f"{session}-whole")
    # A prompt comes behind what is held back.
    more = client.generate(prompt, session=session, max_tokens=3, **bias)
    found = await more.text()
    separator = " " if model == "symbols" else ""
    assert await shown(client, session) == content + separator + prompt + found + more.held_text


async def test_no_character_is_lost_between_calls_of_one_token() -> None:
    async with serving(byte_bundle()) as running:
        await running.client.create_session("a", session_id="s", seed=1)
        written = "é語🌲".encode()
        text = ""
        for byte in written:
            text += await running.client.generate(session="s", max_tokens=1, forced_tokens=[byte]).text()
        assert text == "é語🌲"


async def letters(running: Running, session: str, forced: str, counts: list[int], **options: Any) -> list[Any]:
    """The answers of calls that are forced to generate some letters: text, what is held back, why each ended."""
    vocabulary = running.server._resources.models.named("gru", "").vocabulary
    found, done = [], 0
    for count in counts:
        tokens = vocabulary.encode(forced[done : done + count]).tolist()
        stream = running.client.generate(
            session=session, max_tokens=count, forced_tokens=tokens, model="gru", **options
        )
        found.append((await stream.text(), stream.held_text, stream.finish_reason))
        assert stream.generated_token_count <= count
        done += stream.generated_token_count
    return found


CUT, STOP = FinishReason.MAX_TOKENS, FinishReason.STOP_SEQUENCE


async def test_a_stop_sequence_is_found_across_calls(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    """Also by forks, after a rewind, an import and a restart."""
    stop: dict[str, Any] = {"stop": ["abc"]}
    store = str(tmp_path / "sessions.db")
    async with serving(bundles["gru"], store=store) as running:
        client = running.client
        await client.create_session("x", session_id="s", seed=1)
        assert await letters(running, "s", "xab", [2, 1], **stop) == [("x", "a", CUT), ("", "ab", CUT)]
        await client.fork_session("s", new_session_id="fork")
        await client.fork_session("s", new_session_id="other")
        await client.fork_session("s", new_session_id="prompt")
        content = await client.export_session("s")
        await client.import_session(content, session_id="imported")
        for session in ("s", "fork", "imported"):
            assert await letters(running, session, "c", [1], **stop) == [("", "", STOP)]
            assert (await shown(client, session)) == "xxabc"
        await client.rewind_session("s", 4)  # "xxab"
        assert await letters(running, "s", "c", [1], **stop) == [("", "", STOP)]
        await client.rewind_session("s", 3)  # "xxa"
        assert await letters(running, "s", "d", [1], **stop) == [("ad", "", CUT)]
        # Behind a stop sequence, an answer begins anew; taken back, a session goes on with the one before.
        for _ in range(2):
            assert await letters(running, "fork", "ca", [1, 1], **stop) == [("c", "", CUT), ("", "a", CUT)]
            await client.rewind_session("fork", 4)
            assert await letters(running, "fork", "c", [1], **stop) == [("", "", STOP)]
        assert await letters(running, "fork", "ca", [1, 1], **stop) == [("c", "", CUT), ("", "a", CUT)]
        # With other stop sequences, or none, what was held back comes first.
        assert await letters(running, "other", "ca", [1, 1], stop=["ax"]) == [("abc", "", CUT), ("", "a", CUT)]
        assert await letters(running, "other", "b", [1]) == [("ab", "", CUT)]
        # Behind a prompt a search begins anew.
        assert await client.generate("b", session="prompt", max_tokens=1, forced_tokens=[3], **stop).text() == "c"
        assert await letters(running, "fork", "", [], **stop) == []
    async with serving(bundles["gru"], store=store) as running:
        assert await letters(running, "fork", "bc", [1, 1], **stop) == [("", "ab", CUT), ("", "", STOP)]


async def test_a_repeated_call_has_the_same_answer(bundles: Mapping[str, Bundle]) -> None:
    """Although the session has gone on since."""
    async with serving(bundles["gru"]) as running:
        client = running.client
        await client.create_session("x", session_id="s", seed=1)
        vocabulary = bundles["gru"].text_vocabulary("text")

        async def call(name: str, letter: str, stop: list[str]) -> tuple[str, str, int]:
            tokens = vocabulary.encode(letter).tolist()
            stream = client.generate(session="s", request_id=name, max_tokens=1, forced_tokens=tokens, stop=stop)
            return await stream.text(), stream.held_text, stream.generated_token_count

        calls = [("1", "a", ["abc"]), ("2", "b", ["abc"]), ("3", "a", ["ax"]), ("4", "x", ["ax"])]
        first = [await call(*each) for each in calls]
        assert first == [("", "a", 1), ("", "ab", 1), ("ab", "a", 1), ("", "", 1)]
        assert [await call(*each) for each in calls] == first


def test_answers_with_stop_sequences_do_not_depend_on_cuts() -> None:
    names = (f"s{number}" for number in itertools.count())
    pieces = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=5)
    with server_of(load_bundle(FIXTURES / "b8167f8" / "bundles" / "text")) as (runner, client):

        @settings(max_examples=examples(10, everything=500), deadline=None)
        @given(pieces, st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=2))
        def check(cuts: list[str], stop: list[str]) -> None:
            assert runner.run(forced(client, next(names), cuts, stop)) == runner.run(
                forced(client, next(names), ["".join(cuts)], stop)
            )

        check()


async def forced(client: Client, session: str, pieces: list[str], stop: list[str]) -> tuple[str, str, str]:
    """The answers of calls that are forced to generate some texts: joined, what is held back, and what stopped them."""
    vocabulary = load_bundle(FIXTURES / "b8167f8" / "bundles" / "text").text_vocabulary("text")
    await client.create_session("x", session_id=session, seed=1)
    text = ""
    for piece in pieces:
        tokens = vocabulary.encode(piece).tolist()
        stream = client.generate(session=session, max_tokens=len(tokens), forced_tokens=tokens, stop=stop)
        text += await stream.text()
        if stream.finish_reason is STOP:
            break
    return text, stream.held_text, stream.stop_sequence


async def test_a_match_that_was_cut_is_continued(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    regex, done = "(ab){3}", FinishReason.CONSTRAINT
    store = str(tmp_path / "sessions.db")
    async with serving(bundles["gru"], store=store) as running:
        client = running.client
        await client.create_session("x", session_id="s", seed=1)
        assert await cut(client, "s", [1, 2], regex=regex) == ("aba", "", CUT)
        for session in ("fork", "other", "prompt", "read", "later"):
            await client.fork_session("s", new_session_id=session)
        await client.import_session(await client.export_session("s"), session_id="imported")
        for session in ("s", "fork", "imported"):
            assert await cut(client, session, [10], regex=regex) == ("bab", "", done)
            assert await cut(client, session, [10], regex=regex) == ("ababab", "", done)  # a new one
        await client.rewind_session("s", 1 + 6 + 4)
        assert await cut(client, "s", [1, 9], regex=regex) == ("ab", "", done)
        await client.rewind_session("s", 1 + 3)
        assert await cut(client, "s", [1, 9], regex=regex) == ("bab", "", done)
        await client.generate("yy", session="s", max_tokens=2).text()
        await client.rewind_session("s", 1 + 6 + 1)  # within the prompt
        assert await cut(client, "s", [9], regex=regex) == ("ababab", "", done)
        # Another constraint, a prompt, and tokens that were read begin anew.
        assert await cut(client, "other", [10], regex="c{2}") == ("cc", "", done)
        assert await cut(client, "prompt", [1], regex="zz") == ("z", "", CUT)
        stream = client.generate("y", session="prompt", max_tokens=9, regex=regex)
        assert await stream.text() == "ababab"
        await client.rewind_session("later", 3)  # "xab"
    async with serving(bundles["gru"], store=store) as running:
        assert await cut(running.client, "later", [9], regex=regex) == ("abab", "", done)


async def test_a_match_ends_with_a_prompt_and_is_limited(
    bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elman_server.sessions.calls.session_answers._MATCHED_TOKENS", 20)
    async with serving(bundles["gru"]) as running:
        client = running.client
        await client.create_session("x", session_id="s", seed=1)
        assert (await cut(client, "s", [2], regex="a{4}"))[0] == "aa"
        stream = client.generate("b", session="s", max_tokens=1)
        await stream.text()
        assert (await cut(client, "s", [9], regex="a{4}"))[0] == "aaaa"
        await client.generate("x", session="s", max_tokens=21, regex="[a-z]*").text()
        with pytest.raises(InvalidRequestError, match="constraint: got a match of 21 tokens; at most 20"):
            await client.generate(session="s", max_tokens=1, regex="[a-z]*").text()


async def test_sessions_stored_before_are_continued(tmp_path: Path) -> None:
    """They keep nothing of their answers."""
    store = tmp_path / "sessions.db"
    shutil.copy(FIXTURES / "b8167f8" / "sessions.db", store)
    async with serving(load_bundle(FIXTURES / "b8167f8" / "bundles" / "text"), store=str(store)) as running:
        text, held, reason = await cut(running.client, "kept", [1, 1, 3], stop=["zzz"], regex="[a-z ]*")
        assert (len(text + held), reason) == (5, CUT)


async def test_an_answer_is_not_continued_behind_what_a_session_has_read() -> None:
    async with serving_fake(FakeEngine()) as running:
        client = running.client
        await client.create_session([1, 2], session_id="s")

        async def generate(token: int) -> tuple[str, FinishReason | None]:
            stream = client.generate(session="s", max_tokens=1, forced_tokens=[token], stop=["ab"])
            return await stream.text() + stream.held_text, stream.finish_reason

        assert await generate(1) == ("a", CUT)
        await client.classify([3], session="s")
        assert await generate(2) == ("b", CUT)
        await client.rewind_session("s", 3)
        assert await generate(2) == ("", STOP)


@pytest.mark.parametrize("damage", ['{"a": 1}', "[1]", "[" * 5000, '[{"start": 1}]'])
async def test_an_imported_file_with_damaged_answers_is_refused(bundles: Mapping[str, Bundle], damage: str) -> None:
    async with serving(bundles["gru"]) as running:
        await running.client.create_session("ab", session_id="s")
        assert (await cut(running.client, "s", [1], stop=["zz"]))[2] is CUT
        content = await running.client.export_session("s")
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        metadata["answers"] = damage
        del metadata["checksum"]
        damaged = save(tensors, {**metadata, "checksum": _checksum(metadata, tensors)})
        with pytest.raises(InvalidRequestError):
            await running.client.import_session(damaged, session_id="damaged")
