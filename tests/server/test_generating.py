"""Ways to decode, over a real server: each is what a plain loop brings, alone and in any company."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import grpc
import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from elman import Client, Continuation, FinishReason, InvalidRequestError, OverloadedError
from elman_bundle import Bundle
from elman_protos import v1
from elman_server.decoding.constraints.sandbox import CompilationSandbox, Trial
from elman_server.decoding.randomness import UniformStream
from tests.support.bundles import CHARACTERS, byte_bundle
from tests.support.reference import choose_token, open_graph
from tests.support.serving import serving

Bundles = Mapping[str, Bundle]
PROMPT = "once upon a time"
UNKNOWN = 0


class Plain:
    """A model step by step, onnxruntime alone."""

    def __init__(self, bundle: Bundle) -> None:
        self._session = open_graph(bundle.graph_path)
        self._states = bundle.spec.step.states

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """What follows tokens, [V]."""
        state = {spec.input_name: np.zeros((1, *spec.shape), np.float32) for spec in self._states}
        names = ["logits", *[spec.output_name for spec in self._states]]
        for token in tokens:
            found, *after = self._session.run(names, {"token": np.array([token]), **state})
            state = dict(zip(state, after, strict=True))
        return np.asarray(found[0])

    def log_probabilities(self, tokens: list[int]) -> NDArray[np.float64]:
        values = self.logits(tokens).astype(np.float64)
        values -= values.max()
        return np.asarray(values - np.log(np.exp(values).sum()))


def plainly(bundle: Bundle, prompt: str, *, max_tokens: int, seed: int = 0, **decoding: Any) -> list[int]:
    """What is generated, token by token, in the order of transformers' processors; no end token, no constraint."""
    plain, uniforms = Plain(bundle), UniformStream(seed)
    begin = CHARACTERS.encode(prompt).tolist()
    generated: list[int] = []
    forced = list(decoding.get("forced_tokens", ()))
    while len(generated) < max_tokens:
        tokens = begin + generated
        logits = plain.logits(tokens).astype(np.float64)
        for token, bias in decoding.get("logit_bias", {}).items():
            logits[token] += bias
        for token in set(tokens):
            penalty = decoding.get("repetition_penalty", 1.0)
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        for token, count in Counter(generated).items():
            logits[token] -= decoding.get("frequency_penalty", 0.0) * count + decoding.get("presence_penalty", 0.0)
        for token in decoding.get("forbidden_tokens", ()):
            logits[token] = -np.inf
        logits[UNKNOWN] = -np.inf
        chosen = choose_token(
            logits,
            decoding.get("temperature", 1.0),
            uniforms.take(len(tokens), 1)[0],
            decoding.get("top_k"),
            decoding.get("top_p", 1.0),
            decoding.get("min_p", 0.0),
        )
        generated.append(forced[len(generated)] if len(generated) < len(forced) else chosen)
        text = CHARACTERS.decoder().decode(generated)
        if any(stop in text for stop in decoding.get("stop", ())):
            break
    return generated


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8},
    "filtered": {"temperature": 0.9, "top_k": 7, "top_p": 0.8},
    "min-p": {"min_p": 0.3, "temperature": 1.3},
    "repetition": {"repetition_penalty": 1.7, "temperature": 0.5},
    "frequency": {"frequency_penalty": 0.7, "presence_penalty": 0.4, "temperature": 0.6},
    "bias": {"logit_bias": {5: 3.0, 9: -4.0}, "top_k": 12},
    "forced": {"forced_tokens": [3, 4, 5], "forbidden_tokens": [6, 7]},
    "stop": {"stop": ["e", "ab", "zz"], "temperature": 0.9},
    "everything": {
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.2,
        "logit_bias": {4: 2.0},
        "forbidden_tokens": [8],
        "forced_tokens": [2],
        "top_k": 20,
        "top_p": 0.95,
        "stop": ["q"],
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["lstm", "lstm-int8"])
async def test_each_way_is_what_a_plain_loop_brings(bundles: Bundles, model: str, way: str) -> None:
    bundle = bundles[model]
    async with serving(bundle) as running:
        for seed in range(3):
            options = {"max_tokens": 40, "seed": seed, **WAYS[way]}
            stream = running.client.generate(PROMPT, **options)
            ids = [token async for chunk in stream for token in chunk.token_ids]
            assert ids == plainly(bundle, PROMPT, **options)


async def test_64_streams_of_every_way_at_once_are_each_what_they_are_alone(bundles: Bundles) -> None:
    bundle = bundles["lstm"]
    async with serving(bundle, slots=200) as running:
        client = running.client
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = []
        for number in range(64):
            prompt = PROMPT[: 1 + number % len(PROMPT)]
            calls.append(_call(client, prompt, number))
        alone = [await call() for call in calls]
        together = await asyncio.gather(*(call() for call in calls))
        assert together == alone
        await running.until_idle()


def _call(client: Client, prompt: str, number: int) -> Callable[[], Coroutine[Any, Any, Any]]:
    """One of 64 calls."""
    ways = list(WAYS.values())
    way = ways[number % len(ways)]
    options: dict[str, Any] = {"max_tokens": 20 + number, "seed": number}

    async def sampled() -> Any:
        return _comparable(await client.sample(prompt, count=3, **options, temperature=0.9))

    async def searched() -> Any:
        return _comparable(await client.search(prompt, width=4, count=3, **options))

    async def reported() -> Any:
        stream = client.generate(prompt, log_probabilities=2, **options, **way)
        return [(chunk.text, chunk.token_ids, chunk.reports) async for chunk in stream if chunk.token_ids]

    async def written() -> Any:
        return await client.generate(prompt, **options, **way).text()

    async def gathered() -> Any:
        parts = await reported()
        return "".join(part[0] for part in parts), [report for part in parts for report in part[2]]

    return {0: sampled, 1: searched, 2: gathered}.get(number % 8, written)


def _comparable(continuations: list[Continuation]) -> list[Any]:
    return [(found.text, found.token_ids, found.finish_reason, found.score) for found in continuations]


async def test_samples_are_what_their_seeds_bring_alone(bundles: Bundles) -> None:
    prompt = "tell me " * 30
    async with serving(bundles["gru"]) as running:
        client = running.client
        found = await client.sample(prompt, count=5, max_tokens=30, seed=2**63 - 3, log_probabilities=1)
        assert len({continuation.text for continuation in found}) == 5
        assert len(found[0].reports) == 30
        for index in range(3):
            alone = await client.generate(prompt, max_tokens=30, seed=2**63 - 3 + index).text()
            assert found[index].text == alone
        again = await client.sample(prompt, count=5, max_tokens=30, seed=2**63 - 3)
        assert [one.text for one in again] == [one.text for one in found]
        (model,) = await client.list_models()
        assert model.prefix_hit_count  # The prompt was read once.
        await running.until_idle()


async def test_a_search_finds_sequences_with_their_true_scores(bundles: Bundles) -> None:
    bundle = bundles["elman"]
    plain = Plain(bundle)
    async with serving(bundle) as running:
        found = await running.client.search("abc", width=5, count=4, max_tokens=6, length_penalty=0.5)
        assert len(found) == 4
        assert [one.score for one in found] == sorted((one.score or 0 for one in found), reverse=True)
        for one in found:
            tokens = CHARACTERS.encode("abc").tolist()
            total = 0.0
            for token in one.token_ids:
                total += plain.log_probabilities(tokens)[token]
                tokens.append(token)
            assert one.score == pytest.approx(total / 6**0.5, abs=1e-4)
            assert one.finish_reason is FinishReason.MAX_TOKENS
        greedy = await running.client.generate("abc", temperature=0.0, max_tokens=6).text()
        assert (await running.client.search("abc", width=1, max_tokens=6))[0].text == greedy
        shaped = await running.client.search("abc", width=3, max_tokens=8, forbidden_tokens=list(found[0].token_ids))
        assert not set(shaped[0].token_ids) & set(found[0].token_ids)
        await running.until_idle()


async def test_a_search_waits_for_as_many_slots_as_it_is_wide(bundles: Bundles) -> None:
    async with serving(bundles["lstm"], slots=4) as running:
        client = running.client
        alone = await client.search("ab", width=4, max_tokens=30)
        others = [client.generate("x", max_tokens=400, seed=seed) for seed in range(3)]
        texts = [asyncio.create_task(other.text()) for other in others]
        searches = [asyncio.create_task(client.search("ab", width=4, max_tokens=30)) for _ in range(3)]
        for search in searches:
            assert _comparable(await search) == _comparable(alone)
        for text in texts:
            assert len(await text) == 400
        await running.until_idle()
        with pytest.raises(InvalidRequestError, match=r"beam\.width: got 5; must be 1 to 4"):
            await client.search("ab", width=5)


async def test_log_probabilities_are_those_of_the_model(bundles: Bundles) -> None:
    bundle = bundles["lstm"]
    plain = Plain(bundle)
    async with serving(bundle) as running:
        stream = running.client.generate(PROMPT, max_tokens=12, seed=1, temperature=0.3, log_probabilities=3)
        chunks = [chunk async for chunk in stream]
        tokens = CHARACTERS.encode(PROMPT).tolist()
        for chunk in chunks:
            assert len(chunk.reports) == len(chunk.token_ids)
            for token, report in zip(chunk.token_ids, chunk.reports, strict=True):
                expected = plain.log_probabilities(tokens)
                assert report.log_probability == pytest.approx(expected[token], abs=1e-5)
                best = np.argsort(-expected)[:3]
                assert [likely[0] for likely in report.most_likely] == best.tolist()
                assert [likely[1] for likely in report.most_likely] == [CHARACTERS.token_text(one) for one in best]
                assert [likely[2] for likely in report.most_likely] == pytest.approx(expected[best].tolist(), abs=1e-5)
                tokens.append(token)
        # They change nothing.
        text = "".join(chunk.text for chunk in chunks)
        assert await running.client.generate(PROMPT, max_tokens=12, seed=1, temperature=0.3).text() == text
        without = running.client.generate(PROMPT, max_tokens=2, log_probabilities=0)
        assert [report.most_likely async for chunk in without for report in chunk.reports] == [(), ()]


async def test_log_probabilities_on_a_session_are_those_of_the_whole_text(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        client = running.client
        options: dict[str, Any] = {"log_probabilities": 2, "temperature": 0.5}
        alone = [chunk async for chunk in client.generate(PROMPT, max_tokens=30, seed=4, **options)]
        expected = [report for chunk in alone for report in chunk.reports]
        session = (await client.create_session(PROMPT, seed=4)).session_id
        found: list[Any] = []
        for count in (10, 20):
            chunks = [chunk async for chunk in client.generate(session=session, max_tokens=count, **options)]
            found += [report for chunk in chunks for report in chunk.reports]
        assert found == expected
        with pytest.raises(
            InvalidRequestError,
            match=r"log_probabilities: got a report; reports are not recorded\. Leave out session\.request_id",
        ):
            await client.generate(session=session, request_id="one", **options).text()


async def test_no_part_of_a_stop_sequence_gets_out(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        client = running.client
        whole = await client.generate(PROMPT, max_tokens=200, seed=3).text()
        for length in (1, 2, 5):
            stop = whole[60 : 60 + length]
            end = whole.index(stop)
            for options in ({"interval": 0.0}, {"single_tokens": True}, {}):
                stream = client.generate(PROMPT, max_tokens=200, seed=3, stop=["#", stop], **options)
                chunks = [chunk async for chunk in stream]
                assert "".join(chunk.text for chunk in chunks) == whole[:end]
                assert stream.finish_reason is FinishReason.STOP_SEQUENCE
                assert stream.stop_sequence == stop
                assert sum(len(chunk.token_ids) for chunk in chunks) == end + length == stream.generated_token_count
        # What might have become one and has not is given out in the end.
        stream = client.generate(PROMPT, max_tokens=60, seed=3, stop=[whole[58:60] + "#"])
        assert await stream.text() == whole[:60]
        assert stream.finish_reason is FinishReason.MAX_TOKENS


async def test_a_time_limit_ends_with_what_there_is(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        client = running.client
        stream = client.generate(PROMPT, max_tokens=60_000, seed=3, time_limit=0.3)
        text = await stream.text()
        assert stream.finish_reason is FinishReason.TIME_LIMIT
        assert 0 < len(text) < 60_000
        assert text == (await client.generate(PROMPT, max_tokens=len(text), seed=3).text())
        stream = client.generate("long " * 3000, max_tokens=10, time_limit=0.0)
        assert await stream.text() == ""
        assert stream.finish_reason is FinishReason.TIME_LIMIT
        first, *_ = await client.search(PROMPT, width=4, max_tokens=60_000, time_limit=0.3)
        assert first.finish_reason is FinishReason.TIME_LIMIT
        assert 0 < len(first.text) < 60_000
        for prompt in ("ab", "long " * 3000):
            (found,) = await client.search(prompt, width=2, max_tokens=10, time_limit=0.0)
            assert (found.text, found.token_ids, found.score) == ("", (), None)
            assert found.finish_reason is FinishReason.TIME_LIMIT
        await running.until_idle()


async def test_what_samples_share_is_in_the_first_one_s_usage(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        ways = {"text": "a" * 30, "max_tokens": 4, "sampling": v1.SamplingDecoding(sample_count=2)}
        async with grpc.aio.insecure_channel(running.address) as channel:
            call = v1.InferenceServiceStub(channel).Generate(v1.GenerateRequest(**ways))
            usages = {
                response.sequence_index: response.finished.usage
                async for response in call
                if response.HasField("finished")
            }
        assert [usages[0].step_count, usages[1].step_count] == [29 + 4, 4]
        first, second = (usages[index].waiting_time.ToNanoseconds() for index in range(2))
        assert 0 < first < second
        one, *_ = await running.client.sample("a", count=2, max_tokens=4)
        assert one.usage is not None
        assert one.usage.step_count == 4


async def test_usage_is_told(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        stream = running.client.generate(PROMPT, max_tokens=50)
        await stream.text()
        assert stream.usage is not None
        assert stream.usage.step_count == len(PROMPT) + 49
        usage = stream.usage
        assert 0 <= usage.waiting_time <= usage.first_token_time <= usage.total_time < 60
        (found,) = await running.client.search(PROMPT, width=3, max_tokens=5)
        assert found.usage is not None
        assert found.usage.step_count == len(PROMPT) + 4 * 3


WRONG: dict[str, dict[str, Any]] = {
    "sampling.min_p": {"min_p": 1.5},
    "shaping.repetition_penalty": {"repetition_penalty": 0.0},
    "shaping.frequency_penalty": {"frequency_penalty": math.nan},
    "shaping.presence_penalty": {"presence_penalty": math.inf},
    "shaping.min_tokens": {"min_tokens": 300},
    "shaping.forced_token_ids": {"forced_tokens": [-1]},
    "shaping.forbidden_token_ids": {"forbidden_tokens": [10_000]},
    "shaping.logit_bias": {"logit_bias": {10_000: 1.0}},
    "shaping.logit_bias[3]": {"logit_bias": {3: math.nan}},
    "stop_sequences": {"stop": ["a"] * 17},
    "stop_sequences[1]": {"stop": ["a", ""]},
    "time_limit": {"time_limit": -1.0},
    "log_probabilities.most_likely_count": {"log_probabilities": 33},
}


@pytest.mark.parametrize("field", WRONG)
async def test_what_is_wrong_is_named(bundles: Bundles, field: str) -> None:
    async with serving(bundles["elman"]) as running:
        with pytest.raises(InvalidRequestError) as refused:
            await running.client.generate(PROMPT, **WRONG[field]).text()
        assert str(refused.value).startswith(f"{field}: ")


async def test_what_does_not_go_together_is_refused(bundles: Bundles) -> None:
    async with serving(bundles["elman"]) as running:
        client = running.client
        session = (await client.create_session(PROMPT)).session_id
        with pytest.raises(InvalidRequestError, match="log_probabilities"):
            await client.generate(session=session, request_id="a", log_probabilities=1).text()
        with pytest.raises(
            InvalidRequestError, match=r"stop_sequences: got a value; not available in a beam search\. Leave it out"
        ):
            await client.search("a", width=2, stop=["a"])
        for forced, forbidden in (([3], [4, 3]), ([UNKNOWN], [])):
            with pytest.raises(InvalidRequestError, match="this token must never be generated"):
                await client.generate("a", forced_tokens=forced, forbidden_tokens=forbidden).text()
        a, b = CHARACTERS.encode("ab").tolist()
        for forced in ([b], [a, a, b]):
            with pytest.raises(InvalidRequestError, match=r"^shaping.forced_token_ids: .* not allowed after"):
                await client.generate("x", regex="a+", forced_tokens=forced, max_tokens=5).text()
        assert await client.generate("x", regex="a+b", forced_tokens=[a, a, b], max_tokens=5).text() == "aab"
        everything = list(range(CHARACTERS.size))
        for forbidden in (everything, everything[1:]):  # The unknown token is never generated anyway.
            with pytest.raises(
                InvalidRequestError, match=r"^shaping.forbidden_token_ids: got every token; no token is left"
            ):
                await client.generate("a", forbidden_tokens=forbidden).text()
        with pytest.raises(InvalidRequestError, match="temperature"):
            await client.search("a", width=2, temperature=0.5)
        with pytest.raises(InvalidRequestError, match="exclude each other"):
            client.generate("a", regex="a", lark_grammar="b")
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub = v1.InferenceServiceStub(channel)
            call = v1.SessionCall(session_id=session)
            for request in (
                v1.GenerateRequest(session=call, sampling=v1.SamplingDecoding(sample_count=2)),
                v1.GenerateRequest(session=call, beam=v1.BeamDecoding(width=2)),
                v1.GenerateRequest(text="a", sampling=v1.SamplingDecoding(sample_count=0)),
                v1.GenerateRequest(text="a", beam=v1.BeamDecoding(width=2, result_count=3)),
                v1.GenerateRequest(text="a", beam=v1.BeamDecoding(width=2, length_penalty=math.nan)),
                v1.GenerateRequest(text="a", constraint=v1.Constraint()),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    async for _ in stub.Generate(request):
                        pass
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_nothing_left_to_choose_ends_one_stream_only(bundles: Bundles) -> None:
    async with serving(bundles["elman"]) as running:
        client = running.client
        other = asyncio.create_task(client.generate(PROMPT, max_tokens=300, seed=1).text())
        everything = list(range(CHARACTERS.size))
        with pytest.raises(InvalidRequestError, match=r"which shaping\.forbidden_token_ids excludes"):
            await client.generate(PROMPT, regex="a+", forbidden_tokens=CHARACTERS.encode("a").tolist()).text()
        with pytest.raises(Exception, match="no token is left to choose"):
            await client.generate(PROMPT, forbidden_tokens=everything).text()
        with pytest.raises(Exception, match="everything that could follow is forbidden"):
            await client.search(PROMPT, width=3, forbidden_tokens=everything)
        assert len(await other) == 300
        await running.until_idle()


async def test_cancelled_samples_and_searches_free_their_slots(bundles: Bundles) -> None:
    async with serving(bundles["elman"], slots=16) as running:
        client = running.client
        tasks = [
            asyncio.create_task(client.sample(PROMPT, count=8, max_tokens=50_000)),
            asyncio.create_task(client.search(PROMPT, width=8, max_tokens=50_000)),
        ]
        await asyncio.sleep(0.5)
        assert (await client.list_models())[0].running_count == 16
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await running.until_idle()


async def test_in_a_session_shaping_looks_back_at_all_it_holds(bundles: Bundles) -> None:
    """And what was broken off goes on as if it had not been."""
    bundle = bundles["lstm"]
    options: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 0.3, "stop": ["qq"]}
    async with serving(bundle) as running:
        client = running.client
        session = (await client.create_session(PROMPT, seed=5)).session_id
        expected = plainly(bundle, PROMPT, max_tokens=200, seed=5, **options)
        call = {"session": session, "request_id": "one", "max_tokens": 200, "interval": 0.0, **options}
        received: list[int] = []
        while len(received) < len(expected):
            stream = client.generate(**call, received_token_count=len(received))
            async for chunk in stream:
                received += chunk.token_ids
                if len(received) % 3 == 0:
                    break
            await running.until_free(session)
        assert received == expected
        await client.generate(**call, received_token_count=len(received)).text()
        held = CHARACTERS.encode(PROMPT).tolist() + received
        more = [
            token
            async for chunk in client.generate("x", session=session, seed=5, max_tokens=9, **options)
            for token in chunk.token_ids
        ]
        text = CHARACTERS.decoder().decode(held) + "x"
        assert more == plainly(bundle, text, max_tokens=9, seed=5, **options)


async def test_a_session_ends_where_its_stop_sequence_does(bundles: Bundles) -> None:
    bundle = bundles["gru"]
    async with serving(bundle) as running:
        client = running.client
        whole = await client.generate(PROMPT, max_tokens=100, seed=7).text()
        stop = whole[40:43]
        session = (await client.create_session(PROMPT, seed=7)).session_id
        call: dict[str, Any] = {"session": session, "request_id": "one", "max_tokens": 100, "stop": [stop]}
        end = whole.index(stop)
        for _ in range(2):  # The second time from the record.
            stream = client.generate(**call)
            assert await stream.text() == whole[:end]
            assert (stream.finish_reason, stream.stop_sequence) == (FinishReason.STOP_SEQUENCE, stop)
        assert (await client.session_tokens(session)).text == PROMPT + whole[: end + 3]
        rest = await client.generate(session=session, max_tokens=20).text()
        assert rest == whole[end + 3 : end + 23]


NESTED = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"enum": ["x", "yy"]}, "minItems": 1}, "b": {"const": "zz"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("expression", ["[a-c]{3,5}(de|fg)\\.", "(once|twice),? .*z", "[^a-y]{2}"])
async def test_what_is_constrained_matches(bundles: Bundles, expression: str) -> None:
    pattern = re.compile(expression, re.DOTALL)
    async with serving(bundles["lstm"]) as running:
        client = running.client
        streams = [client.generate(PROMPT, regex=expression, max_tokens=60, seed=seed) for seed in range(20)]
        texts = await asyncio.gather(*(stream.text() for stream in streams))
        assert len(set(texts)) > 1
        for stream, text in zip(streams, texts, strict=True):
            if stream.finish_reason is FinishReason.CONSTRAINT:
                assert pattern.fullmatch(text)
            else:
                assert stream.finish_reason is FinishReason.MAX_TOKENS
        again = client.generate(PROMPT, regex=expression, max_tokens=60, seed=3, log_probabilities=1, temperature=1.0)
        assert await again.text() == texts[3]
        await running.until_idle()


@pytest.mark.parametrize(
    ("expression", "options"), [("[a-c][0-9]?", {}), ("[a-c]d?", {"forbidden_tokens": CHARACTERS.encode("d").tolist()})]
)
async def test_what_is_complete_ends_where_nothing_can_follow(
    bundles: Bundles, expression: str, options: dict[str, Any]
) -> None:
    async with serving(bundles["lstm"]) as running:  # It knows no digits.
        client = running.client
        session = (await client.create_session(PROMPT, seed=5)).session_id
        stream = client.generate(session=session, regex=expression, **options)
        text = await stream.text()
        assert text in {"a", "b", "c"}
        assert stream.finish_reason is FinishReason.CONSTRAINT
        following = await client.generate(PROMPT + text, seed=5, max_tokens=20).text()
        assert await client.generate(session=session, max_tokens=20).text() == following


async def test_a_json_schema_over_a_vocabulary_of_bytes() -> None:
    bundle = byte_bundle()
    async with serving(bundle) as running:
        streams = [running.client.generate("{", json_schema=NESTED, max_tokens=400, seed=seed) for seed in range(8)]
        finished = 0
        for stream in streams:
            text = await stream.text()
            if stream.finish_reason is FinishReason.CONSTRAINT:
                jsonschema.validate(json.loads(text), NESTED)
                finished += 1
        assert finished


async def test_a_constrained_call_on_a_session_goes_on_where_it_was(bundles: Bundles) -> None:
    expression = "([a-f]{4},){6}z"
    async with serving(bundles["lstm"]) as running:
        client = running.client
        alone = await client.generate(PROMPT, regex=expression, seed=5, max_tokens=100).text()
        assert re.fullmatch(expression, alone)
        session = (await client.create_session(PROMPT, seed=5)).session_id
        call: dict[str, Any] = {"session": session, "request_id": "one", "max_tokens": 100, "regex": expression}
        received = 0
        while received < len(alone):
            stream = client.generate(**call, interval=0.0, single_tokens=False, received_token_count=received)
            async for chunk in stream:
                assert chunk.text == alone[received : received + len(chunk.text)]
                received += len(chunk.token_ids)
                break
            await running.until_free(session)
        stream = client.generate(**call)
        assert await stream.text() == alone
        assert stream.finish_reason is FinishReason.CONSTRAINT
        assert (await client.session_tokens(session)).text == PROMPT + alone


async def test_a_bad_expression_is_named_with_its_position(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        client = running.client
        for options, complaint in (
            ({"regex": "ab[c"}, r"^constraint: .*\(at character \d+\)"),
            ({"json_schema": '{"type": "object",, }'}, r"^constraint: .*\(at character 18\)"),
            ({"lark_grammar": "start: nothing_like_that"}, r"^constraint: "),
            ({"regex": "[0-9]+"}, r"^constraint: "),  # The model knows no digits.
            ({"regex": "[0-9]?"}, r"^constraint: .*got an expression that matches the empty text only"),
        ):
            with pytest.raises(InvalidRequestError, match=complaint):
                await client.generate(PROMPT, **options).text()
        assert len(await client.generate(PROMPT, max_tokens=5).text()) == 5


async def test_constraints_that_compile_for_long_keep_nobody_waiting_but_each_other(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, seen = threading.Event(), []
    try_out = CompilationSandbox.try_out

    def slow(sandbox: CompilationSandbox, grammar: str) -> Trial:
        seen.append(grammar)
        assert gate.wait(30)
        return try_out(sandbox, grammar)

    async with serving(bundles["lstm"]) as running:
        client = running.client

        async def generated(regex: str) -> str:
            return await client.generate(PROMPT, regex=regex).text()

        gate.set()
        assert await generated("kept") == "kept"
        gate.clear()
        monkeypatch.setattr(CompilationSandbox, "try_out", slow)
        monkeypatch.setattr("elman_server.inference.grammars._MAX_WAITING", 12)
        try:
            waiting = [asyncio.create_task(generated("ab" * number)) for number in range(1, 13)]
            async with asyncio.timeout(10):
                while running.server._resources.grammars.waiting_count < 12:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            with pytest.raises(
                OverloadedError, match="queue: got one more constraint to compile; at most 12 are accepted"
            ) as refused:
                await generated("c")
            assert refused.value.reason == "QUEUE_FULL"
            again = asyncio.create_task(generated("ab" * 3))
            async with asyncio.timeout(20):
                assert await generated("kept") == "kept"
                await client.generate("long " * 1000, max_tokens=1).text()
            waiting.pop().cancel()
        finally:
            gate.set()
        assert await asyncio.gather(*waiting) == ["ab" * number for number in range(1, 12)]
        assert await again == "ababab"
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="unclosed group"):
                await generated("(")
        assert len(seen) == 12
    assert not any(thread.name.startswith("constraints") for thread in threading.enumerate())
