"""Scoring with a real server: equal to a plain loop, independent of the batch, and without effect on other calls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rich.console import Console

from elman import (
    DeadlineExceededError,
    ElmanError,
    InvalidRequestError,
    OverloadedError,
    Score,
    ScoreStream,
    ServerError,
    v1,
)
from elman_bundle import Bundle, load_bundle
from elman_export import export_run
from elman_server.engine import Chunk, OnnxEngine, Results
from elman_training import TextConfig, train
from tests.support.amount import examples
from tests.support.bundles import CHARACTERS
from tests.support.fake_engine import LETTERS, NAN, POISON, FakeEngine, continuation
from tests.support.reference import generate_alone
from tests.support.rpc import check_error
from tests.support.scores import random_text, scores_alone, until
from tests.support.serving import Running, fake_bundle, serving, serving_fake

Bundles = Mapping[str, Bundle]


async def collected(stream: ScoreStream) -> list[Score]:
    return [score async for score in stream]


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "lstm-int8"])
async def test_scores_equal_a_plain_loop(bundles: Bundles, name: str) -> None:
    random = np.random.default_rng(1)
    async with serving(bundles[name]) as running:
        for context, length in (("", 2), ("", 70), ("a", 1), ("é🌲", 9), (random_text(random, 90), 33)):
            text = random_text(random, length)
            score = await running.client.score(text, context=context)
            expected = scores_alone(bundles[name], context, text)
            assert [token.log_probability for token in score.tokens] == pytest.approx(expected, abs=1e-6)
            assert "".join(token.text for token in score.tokens) == (text if context else text[1:])
            scored = text if context else text[1:]
            assert [token.token_id for token in score.tokens] == CHARACTERS.encode(scored).tolist()
            assert score.token_count == len(expected)
            assert score.log_likelihood == pytest.approx(sum(expected), abs=1e-6 * len(expected))
            assert score.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-6)
            assert score.nats_per_token == pytest.approx(math.log(score.perplexity))
            assert score.bits_per_token == pytest.approx(math.log2(score.perplexity))


async def test_unknown_token_is_scored(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        score = await running.client.score("a€b", context="x")
        assert score.unknown_token_count == 1
        assert score.tokens[1].token_id == CHARACTERS.unknown_id
        expected = scores_alone(bundles["lstm"], "x", "a€b")
        assert [token.log_probability for token in score.tokens] == pytest.approx(expected, abs=1e-6)
        by_ids = await running.client.score(CHARACTERS.encode("a€b").tolist(), context=[CHARACTERS.encode("x")[0]])
        assert by_ids == score


CANDIDATES = examples(500, everything=2000)


@pytest.mark.parametrize("name", ["lstm", "lstm-int8"])
async def test_many_candidates_of_one_context_while_16_streams_generate(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Streams and scores equal single calls to the bit; scores use only their share of the slots."""
    rows: list[int] = []
    run = OnnxEngine.run

    def counted(self: OnnxEngine, own_rows: range, chunk: Chunk, **options: Any) -> Results:
        if chunk.selection.log_probabilities:
            rows.append(own_rows.stop)  # Rows may be partitioned; the last partition has the last rows.
        return run(self, own_rows, chunk, **options)

    monkeypatch.setattr(OnnxEngine, "run", counted)
    random = np.random.default_rng(7)
    context = random_text(random, 150)
    candidates = [random_text(random, int(length)) for length in random.integers(1, 25, CANDIDATES)]
    requests: list[dict[str, Any]] = [
        {"prompt": random_text(random, 5), "max_tokens": 300, "temperature": 1.0, "seed": seed, "top_p": top_p}
        for seed, top_p in enumerate([1.0, 0.8] * 8)
    ]
    async with serving(bundles[name], slots=64) as running:
        rows.clear()  # of the warm-up
        streams = [asyncio.create_task(running.client.generate(**request).text()) for request in requests]
        scores = await collected(running.client.score_candidates(candidates, context=context))
        texts = await asyncio.gather(*streams)
        assert len(scores) == CANDIDATES
        assert max(rows) <= 32 + 16
        assert sum(rows) / len(rows) > 16
        assert ["".join(token.text for token in score.tokens) for score in scores] == candidates
        for index in range(0, CANDIDATES, 97):
            assert await running.client.score(candidates[index], context=context) == scores[index]
    assert texts == [generate_alone(bundles[name], **request) for request in requests]
    for index in range(0, CANDIDATES, CANDIDATES // 5):
        expected = scores_alone(bundles[name], context, candidates[index])
        assert [token.log_probability for token in scores[index].tokens] == pytest.approx(expected, abs=1e-6)


async def test_score_equals_the_validation_loss_of_training(tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 150)
    config = TextConfig(
        task="lm", corpus=str(corpus), cell="gru", layers=1, embedding=8, hidden=24, dropout=0.0, lanes=8,
        window=20, steps=80, learning_rate=2e-2, warmup_steps=5, validate_every=40, average_decay=0.9,
    )  # fmt: skip
    result = train(config, tmp_path / "run", console=Console(quiet=True))
    text = corpus.read_text()
    held_out = text[int(len(text) * (1 - config.held_out)) :][: config.validation_limit]
    bundles = []
    for quantize in (None, "int8"):
        export_run(tmp_path / "run", tmp_path / f"{quantize}", name=f"{quantize}", quantize=quantize)
        bundles.append(load_bundle(tmp_path / f"{quantize}"))
    async with serving(*bundles) as running:
        score = await running.client.score(held_out, model="None", totals_only=True)
        assert score.token_count == len(held_out) - 1
        assert score.nats_per_token == pytest.approx(result.validation.nats, abs=1e-3)
        assert result.validation.nats < 2.0  # it has learned
        quantized = await running.client.score(held_out, model="int8", totals_only=True)
        assert quantized.nats_per_token == pytest.approx(result.validation.nats, abs=0.05)


# ---- compared with manual computation


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(capacity=8)


@pytest.fixture
async def running(engine: FakeEngine) -> AsyncIterator[Running]:
    async with serving_fake(engine, waiting_limit=2, write_timeout=0.5) as running:
        yield running


@pytest.fixture
async def stub(running: Running) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield v1.AnalysisServiceStub(channel)


def values(score: Score) -> list[float]:
    return [token.log_probability for token in score.tokens]


async def test_scores_equal_manual_computation(running: Running) -> None:
    # After a and b, with sum 3, the model is certain of c, then of f, then that nothing follows.
    assert values(await running.client.score("cf", context="ab")) == [0, 0]
    assert values(await running.client.score("cg", context="ab")) == [0, -100]
    assert values(await running.client.score("abc")) == [-100, 0]
    totals = await running.client.score("cg", context="ab", totals_only=True)
    assert (totals.tokens, totals.log_likelihood, totals.token_count) == ((), -100, 2)
    assert totals.perplexity == pytest.approx(math.exp(50))


async def test_perplexity_overflow_is_infinite(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.support.fake_engine.log_probabilities",
        lambda logits, targets: np.full(targets.shape, -np.inf, np.float32),
    )
    score = await running.client.score("ab")
    assert (score.log_likelihood, score.perplexity) == (-math.inf, math.inf)


async def test_context_is_prefilled_once(engine: FakeEngine) -> None:
    engine.step_counts = (1,)
    async with serving_fake(engine) as running:
        context, candidates = "ab" * 20, ["c", "de", "fff"] * 10
        stream = running.client.score_candidates(candidates, context=context)
        assert len(await collected(stream)) == 30
        assert stream.context_token_count == 40
        assert sum(rows * count for rows, count in engine.runs) == 39 + sum(map(len, candidates))
        assert (stream.model, stream.digest) == ("fake", "sha256:fake")


async def test_cached_context_is_not_prefilled_again(running: Running, engine: FakeEngine) -> None:
    context = "abc" * 50
    expected = await collected(running.client.score_candidates(["ab", "c"], context=context))
    engine.runs.clear()
    again = running.client.score_candidates(["ab", "c"], context=context)
    assert await collected(again) == expected
    assert again.cached_token_count == 149
    assert sum(count for _, count in engine.runs) < 10
    longer = running.client.score_candidates(["ab"], context=context + "de")
    other = running.client.score_candidates(["ab"], context=context + "de", bypass_prefix_cache=True)
    assert await collected(longer) == await collected(other)
    assert (longer.cached_token_count, other.cached_token_count) == (149, 0)
    # Prompts and contexts share the prefix cache.
    assert (await running.client.generate(context, max_tokens=1, temperature=0).text()) == LETTERS[300 % 9 or 1]
    model = await running.client.get_model("fake")
    assert model.prefix_hit_count == 3


async def test_begin_token_precedes_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fake_bundle()
    bundle.spec.vocabularies[0].begin_token_id = 4
    monkeypatch.setattr("tests.support.serving.fake_bundle", lambda *_, **__: bundle)
    async with serving_fake(FakeEngine()) as running:
        assert values(await running.client.score("dh")) == [0, 0]
        assert values(await running.client.score("d")) == [0]
        stream = running.client.score_candidates(["e", "d"], context="a")
        assert [values(score) for score in await collected(stream)] == [[0], [-100]]
        assert stream.context_token_count == 2


async def test_long_score_is_sent_in_parts(stub: Any, running: Running) -> None:
    text = "abcdefgh" * 125
    request = v1.ScoreRequest(candidates=[v1.AnalysisInput(text=text)] * 15)
    responses = [response async for response in stub.Score(request)]
    assert all(response.ByteSize() <= 20_000 for response in responses)
    assert [response.HasField("started") for response in responses] == [True] + [False] * (len(responses) - 1)
    parts = [part for response in responses for part in response.scores]
    assert sorted({part.candidate_index for part in parts}) == list(range(15))
    assert [part.HasField("total") for part in parts] == [
        index == len(parts) - 1 or parts[index + 1].candidate_index != part.candidate_index
        for index, part in enumerate(parts)
    ]
    assert len(parts) > 15
    scores = await collected(running.client.score_candidates([text] * 15))
    assert {score.token_count for score in scores} == {999}
    assert all("".join(token.text for token in score.tokens) == text[1:] for score in scores)


def texts(*candidates: str, **rest: Any) -> v1.ScoreRequest:
    return v1.ScoreRequest(candidates=[v1.AnalysisInput(text=text) for text in candidates], **rest)


def tokens(*ids: int) -> v1.AnalysisInput:
    return v1.AnalysisInput(tokens=v1.TokenSequence(ids=ids))


_BAD = {
    "unknown model": (texts("ab", model="nope"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    "no candidates": (texts(), "INVALID_ARGUMENT", "INVALID_FIELD", "candidates"),
    "empty candidate": (texts("ab", ""), "INVALID_ARGUMENT", "INVALID_FIELD", "candidates[1]"),
    "candidate of nothing": (
        v1.ScoreRequest(candidates=[v1.AnalysisInput()]), "INVALID_ARGUMENT", "INVALID_FIELD", "candidates[0]",
    ),
    "one token without context": (texts("ab", "a"), "INVALID_ARGUMENT", "INVALID_FIELD", "candidates[1]"),
    "token outside": (
        v1.ScoreRequest(candidates=[tokens(1, 2), tokens(1, 11)]),
        "INVALID_ARGUMENT", "INVALID_FIELD", "candidates[1].tokens.ids[1]",
    ),
    "negative token in the context": (
        texts("ab", context=tokens(-1)), "INVALID_ARGUMENT", "INVALID_FIELD", "context.tokens.ids[0]",
    ),
    "long candidate": (texts("ab", "a" * 1001), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "candidates[1].text"),
    "long context": (
        texts("ab", context=v1.AnalysisInput(text="a" * 1001)), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "context.text",
    ),
    "long in all": (texts(*["a" * 1000] * 17), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "candidates[16]"),
    "large message": (texts(*["a" * 1000] * 21), "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", None),
}  # fmt: skip


@pytest.mark.parametrize("name", _BAD)
async def test_bad_score_request(stub: Any, running: Running, engine: FakeEngine, name: str) -> None:
    request, code, reason, field = _BAD[name]
    other = asyncio.create_task(running.client.generate("ab", max_tokens=2000, temperature=0).text())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in stub.Score(request)]
    check_error(caught.value, code, reason, field)
    assert await other == "".join(LETTERS[token] for token in continuation([1, 2], 2000))


async def test_too_many_candidates_are_rejected(engine: FakeEngine) -> None:
    async with serving_fake(engine, max_tokens_limit=65_536, input_limit=65_536, message_limit=4_194_304) as running:
        with pytest.raises(InvalidRequestError, match="got 16385; must be 1 to 16384"):
            await collected(running.client.score_candidates(["a"] * 16_385, context="a"))
        scores = await collected(running.client.score_candidates(["ab"] * 5000, context="a", totals_only=True))
        assert len(scores) == 5000


async def test_text_outside_the_vocabulary_is_reported_with_its_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = fake_bundle()
    monkeypatch.setattr("elman_bundle.character_vocabulary.CharacterVocabulary.encode", _refuse)
    monkeypatch.setattr("tests.support.serving.fake_bundle", lambda *_, **__: bundle)
    async with serving_fake(FakeEngine()) as running:
        with pytest.raises(
            InvalidRequestError, match=r"candidates\[0\]\.text: got a text that cannot be encoded at position 1; "
        ):
            await running.client.score("aé", context=[1])


def _refuse(self: object, text: str) -> Any:
    from elman_bundle import EncodingError

    raise EncodingError("the character 'é' is not in the model's vocabulary", 1)


async def test_model_with_only_labels_cannot_score(bundles: Bundles) -> None:
    async with serving(bundles["tags"]) as running:
        with pytest.raises(InvalidRequestError, match="it has labels and does not generate text") as caught:
            await running.client.score("ab", model="tags")
        assert caught.value.reason == "MODEL_UNSUITABLE"
        with pytest.raises(InvalidRequestError, match="no model of this server can generate"):
            await running.client.score("ab")


async def test_values_that_the_protocol_cannot_express_are_rejected(running: Running) -> None:
    with pytest.raises(InvalidRequestError, match="a list of texts is needed"):
        running.client.score_candidates("abc")
    with pytest.raises(InvalidRequestError, match="cannot be expressed"):
        running.client.score_candidates([[2**40]])


@pytest.mark.parametrize("bad", [LETTERS[POISON], LETTERS[NAN]])
async def test_failing_candidate_is_named_and_does_not_affect_others(
    running: Running, engine: FakeEngine, bad: str
) -> None:
    candidates = ["ab", "cd", f"a{bad}b", "ef"]
    other = running.client.generate("ab", max_tokens=500, temperature=0)
    concurrent = asyncio.create_task(collected(running.client.score_candidates(["abcf"] * 40, context="a")))
    reading = asyncio.create_task(other.text())
    with pytest.raises(ServerError, match=r"candidates\[2\]: ") as caught:
        await collected(running.client.score_candidates(candidates, context="c"))
    assert caught.value.reason == "MODEL_FAILED"
    assert await reading == "".join(LETTERS[token] for token in continuation([1, 2], 500))
    expected = await running.client.score("abcf", context="a")
    assert set(await concurrent) == {expected}


@pytest.mark.parametrize("bad", [LETTERS[POISON], LETTERS[NAN]])
async def test_finished_scores_are_returned_before_a_failure(bad: str) -> None:
    engine = FakeEngine(capacity=16)
    async with serving_fake(engine) as running:
        actual: list[Score] = []

        async def collect() -> None:
            async for score in running.client.score_candidates(["ab", "ba", "bb", f"{bad}a", "aa"], context="c"):
                actual.append(score)  # noqa: PERF401

        with pytest.raises(ServerError, match=r"candidates\[3\]: "):
            await collect()
        assert actual == [await running.client.score(text, context="c") for text in ("ab", "ba", "bb")]


async def test_cancelled_call_frees_its_slots(running: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    stream = running.client.score_candidates(["abc" * 300] * 10, context="a")
    task = asyncio.create_task(collected(stream))
    await until(running, 4)  # half of the slots
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    engine.gate.set()
    await running.until_idle()
    assert len(engine.runs) < 10
    assert (await running.client.get_model("fake")).waiting_count == 0
    assert values(await running.client.score("cf", context="ab")) == [0, 0]


async def test_expired_call_frees_its_slots(running: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    with pytest.raises(DeadlineExceededError):
        await collected(running.client.score_candidates(["abc" * 300] * 10, context="a", timeout=0.3))
    await asyncio.sleep(0.1)
    engine.gate.set()
    await running.until_idle()
    assert len(engine.runs) < 10


async def test_leaving_a_score_stream_frees_its_slots(running: Running, engine: FakeEngine) -> None:
    async for score in running.client.score_candidates(["abc", *["abc" * 300] * 10], context="a"):
        assert score.token_count == 3
        engine.gate.clear()  # The time until the server notices the cancellation must not count as runs.
        break
    runs = len(engine.runs)
    await asyncio.sleep(0.3)
    engine.gate.set()
    await running.until_idle()
    assert len(engine.runs) < runs + 50  # the whole text takes more than 500


async def test_full_queue_refuses_calls_but_not_candidates_of_running_calls(
    running: Running, engine: FakeEngine
) -> None:
    engine.gate.clear()
    streams = [asyncio.create_task(running.client.generate("a", max_tokens=5).text()) for _ in range(10)]
    await until(running, 10)
    with pytest.raises(OverloadedError):
        await running.client.score("ab")
    engine.gate.set()
    await asyncio.gather(*streams)
    assert len(await collected(running.client.score_candidates(["abc"] * 100))) == 100


async def test_stopping_server_fails_running_calls(engine: FakeEngine) -> None:
    async with serving_fake(engine, drain_timeout=0.1) as running:
        engine.gate.clear()
        task = asyncio.create_task(collected(running.client.score_candidates(["abc"] * 1000, context="a")))
        await until(running, 4)
        ending = asyncio.create_task(running.server.drain())
        await asyncio.sleep(0.3)
        engine.gate.set()
        with pytest.raises(ElmanError) as caught:
            await task
        assert caught.value.reason == "SERVER_DRAINING"
        await ending
