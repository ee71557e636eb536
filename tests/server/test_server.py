"""The server with real bundles: concurrent clients receive exactly what each would receive alone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping

import grpc
import pytest
import torch

from elman import Client, DeadlineExceededError, FinishReason, Token
from elman_bundle import Bundle, ByteVocabulary
from elman_server.engine import Chunk, OnnxEngine, Results
from tests.support.bundles import CHARACTERS, CLASSES, make_small_network, write_network
from tests.support.reference import generate_alone
from tests.support.serving import serving
from tests.support.shared import shared_bundle

Bundles = Mapping[str, Bundle]


def random_requests(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Return requests with different prompts, lengths, temperatures and seeds."""
    chosen = random.Random(seed)
    alphabet = CHARACTERS.tokens[1:]
    return [
        {
            "prompt": "".join(chosen.choices(alphabet, k=chosen.randint(1, 60))),
            "max_tokens": chosen.randint(1, 120),
            "temperature": chosen.choice([0.0, 0.5, 1.0, 1.5]),
            **chosen.choice([{}, {}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 20, "top_p": 0.9}]),
            "seed": chosen.getrandbits(63) - 2**62,
        }
        for _ in range(count)
    ]


async def generate(client: Client, model: str, request: dict[str, object]) -> str:
    return await client.generate(model=model, **request).text()  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "lstm-int8"])
async def test_every_cell_is_served(bundles: Bundles, cell: str) -> None:
    async with serving(bundles[cell]) as running:
        for request in random_requests(5):
            served = await generate(running.client, cell, request)
            assert served == generate_alone(bundles[cell], **request)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lstm", "lstm-int8"])
async def test_64_concurrent_streams_equal_single_streams(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runs: list[tuple[int, int]] = []
    run = OnnxEngine.run

    def counted(self: OnnxEngine, rows: range, chunk: Chunk, **how: bool) -> Results:
        runs.append((rows.stop, len(chunk)))  # Rows may be partitioned; the last partition has the last rows.
        return run(self, rows, chunk, **how)

    monkeypatch.setattr(OnnxEngine, "run", counted)
    requests = random_requests(64)
    async with serving(bundles[name], slots=64) as running:
        together = await asyncio.gather(*[generate(running.client, name, request) for request in requests])
        assert max(rows for rows, _ in runs) > 32  # The streams shared the batch,
        assert max(count for rows, count in runs if rows > 8) > 1  # and took several steps per run.
        alone = [await generate(running.client, name, request) for request in requests]
    assert [text.encode() for text in together] == [text.encode() for text in alone]
    assert together == [generate_alone(bundles[name], **request) for request in requests]  # type: ignore[arg-type]


async def test_delivery_options_change_messages_but_no_tokens(bundles: Bundles) -> None:
    requests = random_requests(6, seed=4)
    async with serving(bundles["gru"]) as running:
        for request in requests:
            expected = generate_alone(bundles["gru"], **request)  # type: ignore[arg-type]
            for delivery in ({}, {"single_tokens": True}, {"interval": 0.0}, {"interval": 30.0}):
                stream = running.client.generate(model="gru", **request, **delivery)  # type: ignore[arg-type]
                chunks = [chunk async for chunk in stream]
                assert "".join(chunk.text for chunk in chunks) == expected
                if "single_tokens" in delivery:
                    assert {len(chunk.token_ids) for chunk in chunks} == {1}
                if delivery.get("interval") and len(expected) > 1:
                    assert len(chunks) == 2  # the first token, then all coalesced ones


async def test_more_streams_than_slots_and_several_models(bundles: Bundles) -> None:
    requests = random_requests(60, seed=1)
    names = ["elman", "lstm", "gru"] * 20
    async with serving(bundles["elman"], bundles["lstm"], bundles["gru"], slots=5) as running:
        calls = [generate(running.client, name, request) for name, request in zip(names, requests, strict=True)]
        together = await asyncio.gather(*calls)
    assert together == [
        generate_alone(bundles[name], **request)  # type: ignore[arg-type]
        for name, request in zip(names, requests, strict=True)
    ]


_VICTIM = """
import asyncio, sys
from elman import Client

async def main():
    async with Client(sys.argv[1]) as client:
        streams = [client.generate("a", model="gru", max_tokens=60000, seed=seed) for seed in range(8)]
        async def read(stream):
            async for chunk in stream:
                print("streaming", flush=True)
        await asyncio.gather(*map(read, streams))

asyncio.run(main())
"""


async def test_killed_cancelled_and_timed_out_streams_do_not_affect_others(bundles: Bundles) -> None:
    requests = random_requests(64, seed=2)
    for request in requests:
        request["max_tokens"] = 1000
    expected = [generate_alone(bundles["gru"], **request) for request in requests]  # type: ignore[arg-type]
    async with serving(bundles["gru"], slots=96) as running:
        killed = await asyncio.to_thread(start_victim, running.address)
        survivors = [asyncio.create_task(generate(running.client, "gru", request)) for request in requests]
        endless = {"max_tokens": 60_000, "model": "gru"}
        cancelled = [running.client.generate("b", seed=seed, **endless) for seed in range(8)]
        timed_out = [running.client.generate("c", seed=seed, timeout=0.3, **endless) for seed in range(8)]
        started = [aiter(stream) for stream in cancelled]
        for chunks in started:
            await anext(chunks)
        (model,) = await running.client.list_models()
        assert model.running_count > 8
        assert not any(task.done() for task in survivors)
        os.kill(killed.pid, signal.SIGKILL)
        for stream in cancelled:
            stream.cancel()
        for stream in timed_out:
            with pytest.raises(DeadlineExceededError):
                await stream.text()
        assert await asyncio.gather(*survivors) == expected
        await running.until_idle()
        killed.communicate()
        # All slots are free, and their previous content has no effect.
        assert await generate(running.client, "gru", requests[0]) == expected[0]


def start_victim(address: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", _VICTIM, address], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


async def test_leaving_a_stream_early_frees_the_slot(bundles: Bundles) -> None:
    async with serving(bundles["gru"]) as running:
        async for _ in running.client.generate("a", max_tokens=60_000):
            break
        await running.until_idle()


async def test_generation_reports_its_usage(bundles: Bundles) -> None:
    async with serving(bundles["gru"]) as running:
        stream = running.client.generate("aé?", max_tokens=5)
        chunks = [chunk async for chunk in stream]
        again = await running.client.generate("aé?", max_tokens=5, seed=stream.seed).text()
    assert "".join(chunk.text for chunk in chunks) == again
    assert sum(len(chunk.token_ids) for chunk in chunks) == stream.generated_token_count == 5
    assert (stream.model, stream.digest) == ("gru", bundles["gru"].digest)
    assert (stream.prompt_token_count, stream.unknown_token_count) == (3, 1)
    assert stream.finish_reason is FinishReason.MAX_TOKENS


async def test_text_and_token_ids_are_the_same_prompt(bundles: Bundles) -> None:
    async with serving(bundles["gru"]) as running:
        by_text = await running.client.generate("語 abc", max_tokens=20, seed=1).text()
        ids = CHARACTERS.encode("語 abc").tolist()
        assert await running.client.generate(ids, max_tokens=20, seed=1).text() == by_text


async def test_unknown_token_is_never_generated(bundles: Bundles) -> None:
    async with serving(bundles["elman"]) as running:
        text = await running.client.generate("a", max_tokens=5000, temperature=50.0).text()
    assert "�" not in text
    assert set(text) == set(CHARACTERS.tokens[1:])


async def test_classification_does_not_depend_on_concurrent_requests(bundles: Bundles) -> None:
    texts = [str(request["prompt"]) for request in random_requests(64, seed=3)]
    async with serving(bundles["classes"]) as running:
        together = await asyncio.gather(*[running.client.classify(text) for text in texts])
        alone = [await running.client.classify(text) for text in texts]
    assert together == alone
    for text, prediction in zip(texts, together, strict=True):
        assert {label.name for label in prediction.labels} == set(CLASSES)
        probabilities = [label.probability for label in prediction.labels]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert prediction.step_count == len(text)
        assert prediction.steps == ()


async def test_streamed_labels_do_not_depend_on_the_pieces(bundles: Bundles) -> None:
    text = "the 語 in the 🌲, said ß.\n" * 5
    chosen = random.Random(0)
    async with serving(bundles["tags"], bundles["classes"], bundles["gru"]) as running:
        # Other streams run in the meantime, so that a state in the wrong row would be overwritten.
        busy = [asyncio.create_task(generate(running.client, "gru", request)) for request in random_requests(16)]
        tags = await running.client.classify(text, model="tags")
        for _ in range(5):
            pieces = cut(text, chosen)
            parts = [part async for part in running.client.stream_classify(pieces, model="tags")]
            assert [len(part.steps) for part in parts] == [len(piece) for piece in pieces]
            assert tuple(step for part in parts for step in part.steps) == tags.steps
            so_far = [part async for part in running.client.stream_classify(pieces, model="classes")]
            read = ""
            for piece, prediction in zip(pieces, so_far, strict=True):
                read += piece
                if read:
                    assert prediction == await running.client.classify(read, model="classes")
        await asyncio.gather(*busy)


def cut(text: str, chosen: random.Random) -> list[str]:
    places = sorted(chosen.choices(range(len(text) + 1), k=8))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


async def test_health_and_reflection_are_the_standard_services(bundles: Bundles) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with serving(bundles["gru"]) as running, grpc.aio.insecure_channel(running.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "elman.v1.InferenceService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        answers = [answer async for answer in reflection.ServerReflectionInfo(iter(requests))]
        services = {service.name for service in answers[0].list_services_response.service}
        assert "elman.v1.InferenceService" in services


async def test_models_are_listed_with_their_manifests(bundles: Bundles) -> None:
    async with serving(bundles["tags"], bundles["gru"], slots=7, waiting_limit=3) as running:
        listed = await running.client.list_models()
        assert [model.name for model in listed] == ["gru", "tags"]
        model = await running.client.get_model("tags")
    assert model == listed[1]
    assert model.spec == bundles["tags"].spec
    assert (model.digest, model.provider) == (bundles["tags"].digest, "cpu")
    assert (model.slot_count, model.waiting_limit, model.running_count, model.waiting_count) == (7, 3, 0, 0)


async def test_stream_holds_no_slot_between_pieces(bundles: Bundles) -> None:
    async with serving(bundles["tags"], slots=1) as running:
        first_done, go_on = asyncio.Event(), asyncio.Event()

        async def pieces():  # type: ignore[no-untyped-def]
            yield "ab"
            await go_on.wait()
            yield "cd"

        async def follow() -> list[int]:
            lengths = []
            async for prediction in running.client.stream_classify(pieces()):
                lengths.append(len(prediction.steps))
                first_done.set()
            return lengths

        following = asyncio.create_task(follow())
        await first_done.wait()
        assert (await running.client.classify("abc")).step_count == 3  # the only slot is free
        go_on.set()
        assert await following == [2, 2]


async def test_byte_models_stream_complete_characters() -> None:
    """A byte model that prefers the bytes of multi-byte characters."""
    network = make_small_network(256)
    with torch.no_grad():
        network.head.bias[list("語🌲é".encode())] += 4
    bundle = shared_bundle(
        "multi-byte", lambda folder: write_network(network, folder, "bytes", Token(ByteVocabulary()))
    )
    async with serving(bundle) as running:
        stream = running.client.generate("語🌲", max_tokens=3000, seed=1)
        chunks = [chunk async for chunk in stream]
    assert (stream.prompt_token_count, stream.unknown_token_count) == (7, 0)
    ids = bytes(token for chunk in chunks for token in chunk.token_ids)
    assert "".join(chunk.text for chunk in chunks) == ids.decode("utf-8", errors="replace")
    assert {"語", "é"} & set(ids.decode("utf-8", errors="replace"))


async def test_a_begin_token_allows_an_empty_prompt_and_an_end_token_ends(ends: Bundle) -> None:
    async with serving(ends) as running:
        stream = running.client.generate(max_tokens=1000, seed=3)
        text = await stream.text()
    assert stream.prompt_token_count == 1
    assert stream.finish_reason is FinishReason.END_TOKEN
    assert len(text) == stream.generated_token_count < 1000
    assert "$" not in text
