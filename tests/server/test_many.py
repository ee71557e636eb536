"""Batch calls: each request equals a single call, failures are isolated, and no request blocks the others."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from elman import Client, DeadlineExceededError, InvalidRequestError, ModelNotFoundError, UnavailableError
from elman_bundle import Bundle
from elman_protos import v1
from tests.support.encoder_models import translator_bundle
from tests.support.serving import Running, serving
from tests.support.trees import as_expression, as_nodes, random_tree

WORDS = ["elman", "a quick brown fox", "z"]


@pytest.fixture(scope="module")
def translator() -> Bundle:
    return translator_bundle()


def channel_to(running: Running) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(running.address)


def translation(number: int, **more: Any) -> v1.GenerateRequest:
    source = v1.Source(text=WORDS[number % 3])
    return v1.GenerateRequest(model="translator", source=source, seed=number, max_tokens=1 + number % 20, **more)


def tree(number: int, **more: Any) -> v1.ClassifyRequest:
    expression = as_expression(random_tree(number, 2, 1 + number % 40))[0]
    return v1.ClassifyRequest(model="binary", tree=v1.Tree(s_expression=expression), **more)


async def generated(stub: Any, messages: list[v1.GenerateManyRequest]) -> dict[int, list[v1.GenerateAnswer]]:
    """Return the answers to every request, in order, and check that the last one is marked."""
    result: dict[int, list[v1.GenerateAnswer]] = defaultdict(list)
    async for message in stub.GenerateMany(iter(messages)):
        for answer in message.answers:
            result[answer.request_index].append(answer)
    for answers in result.values():
        assert [answer.last for answer in answers] == [False] * (len(answers) - 1) + [True]
    return result


def text_of(answers: list[v1.GenerateAnswer]) -> str:
    return "".join(answer.response.chunk.text for answer in answers)


def reason(failure: v1.Failure) -> str:
    """Return the reason of a failure, which has the encoding of a google.rpc.Status."""
    status = status_pb2.Status.FromString(failure.SerializeToString())
    assert (status.code, status.message) == (failure.code, failure.message)
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason


async def test_batched_generations_equal_single_ones(translator: Bundle) -> None:
    async with serving(translator) as running, channel_to(running) as channel:
        stub = v1.InferenceServiceStub(channel)
        requests = [translation(number) for number in range(300)]
        messages = [v1.GenerateManyRequest(requests=requests[start : start + 70]) for start in range(0, 300, 70)]
        result = await generated(stub, messages)
        assert sorted(result) == list(range(300))
        for number in (0, 1, 2, 57, 299):
            alone = [response async for response in stub.Generate(requests[number])]
            assert text_of(result[number]) == "".join(response.chunk.text for response in alone)
            end = result[number][-1].response.finished
            assert (end.finish_reason, end.generated_token_count) == (
                alone[-1].finished.finish_reason,
                alone[-1].finished.generated_token_count,
            )
        await running.until_idle()


async def test_every_sample_and_beam_result_is_finished_once(translator: Bundle) -> None:
    async with serving(translator) as running, channel_to(running) as channel:
        samples = translation(5, sampling=v1.SamplingDecoding(sample_count=3))
        search = translation(19, beam=v1.BeamDecoding(width=4, result_count=2))
        requests = [samples, search]
        result = await generated(v1.InferenceServiceStub(channel), [v1.GenerateManyRequest(requests=requests)])
        ends = {index: sum(a.response.HasField("finished") for a in answers) for index, answers in result.items()}
        assert ends == {0: 3, 1: 2}


async def test_batched_trees_equal_single_trees_bit_exactly(tree_bundles: Mapping[str, Bundle]) -> None:
    async with serving(tree_bundles["binary"]) as running, channel_to(running) as channel:
        stub = v1.InferenceServiceStub(channel)
        requests = [tree(number, every_node=number % 2 == 0) for number in range(400)]
        result: dict[int, v1.ClassifyResponse] = {}
        async for message in stub.ClassifyMany(iter([v1.ClassifyManyRequest(requests=requests)])):
            result |= {answer.request_index: answer.response for answer in message.answers}
        assert sorted(result) == list(range(400))
        for number in range(0, 400, 23):
            assert result[number] == await stub.Classify(requests[number])


async def test_mixed_batch_of_trees_equals_single_calls(tree_bundles: Mapping[str, Bundle]) -> None:
    """Trees are parsed in groups, some of which contain a node list, a long tree, another model, or an error."""
    async with serving(*tree_bundles.values()) as running, channel_to(running) as channel:
        stub = v1.InferenceServiceStub(channel)
        requests = [tree(number, every_node=number % 3 == 0) for number in range(96)]
        requests[20] = v1.ClassifyRequest(model="binary", tree=as_nodes(random_tree(1, 2, 30)))
        long = as_expression(random_tree(2, 2, 3000))[0]
        requests[40] = v1.ClassifyRequest(model="binary", tree=v1.Tree(s_expression=long))
        requests[60].model = next(name for name in tree_bundles if name != "binary")
        requests[80] = v1.ClassifyRequest(model="binary", text="no tree")
        requests[85].tree.s_expression += ")"
        call = stub.ClassifyMany(iter([v1.ClassifyManyRequest(requests=requests)]))
        result = {answer.request_index: answer async for message in call for answer in message.answers}
        assert sorted(result) == list(range(96))
        for number, request in enumerate(requests):
            if number in (80, 85):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.Classify(request)
                assert result[number].failure.message == refused.value.details()
            else:
                assert result[number].response == await stub.Classify(request), number


async def test_failed_request_does_not_affect_the_others(
    translator: Bundle, tree_bundles: Mapping[str, Bundle]
) -> None:
    async with serving(translator, tree_bundles["binary"]) as running, channel_to(running) as channel:
        stub = v1.InferenceServiceStub(channel)
        requests = [translation(1), v1.GenerateRequest(model="nobody"), translation(2, time_limit={"seconds": -1})]
        result = await generated(stub, [v1.GenerateManyRequest(requests=[*requests, translation(3)])])
        assert [len(result[index][-1].response.finished.ListFields()) > 0 for index in range(4)] == [
            True,
            False,
            False,
            True,
        ]
        assert reason(result[1][-1].failure) == "MODEL_NOT_FOUND"
        assert result[1][-1].failure.code == code_pb2.NOT_FOUND
        assert reason(result[2][-1].failure) == "INVALID_FIELD"
        bad = v1.ClassifyRequest(model="binary", tree=v1.Tree(s_expression="(a (b w1)"))
        call = stub.ClassifyMany(iter([v1.ClassifyManyRequest(requests=[tree(1), bad, tree(2)])]))
        answers = {answer.request_index: answer async for message in call for answer in message.answers}
        assert [answers[index].WhichOneof("outcome") for index in range(3)] == ["response", "failure", "response"]
        assert "got too few ')'; the bracket at character 0 is not closed" in answers[1].failure.message


async def test_requests_of_one_call_do_not_fill_the_queue(tree_bundles: Mapping[str, Bundle]) -> None:
    """With two slots and no queue, the requests of one call are not refused."""
    async with serving(tree_bundles["binary"], slots=2, waiting_limit=0) as running, channel_to(running) as channel:
        stub = v1.InferenceServiceStub(channel)
        requests = [tree(number) for number in range(300)]
        call = stub.ClassifyMany(iter([v1.ClassifyManyRequest(requests=requests)]))
        answers = [answer async for message in call for answer in message.answers]
        assert sorted(answer.request_index for answer in answers) == list(range(300))
        assert all(answer.HasField("response") for answer in answers)


async def test_call_without_requests_returns_no_answers(translator: Bundle) -> None:
    async with serving(translator) as running, channel_to(running) as channel:
        stub = v1.InferenceServiceStub(channel)
        assert await generated(stub, []) == {}
        assert await generated(stub, [v1.GenerateManyRequest()]) == {}


async def test_disconnected_client_frees_its_slots(translator: Bundle) -> None:
    async with serving(translator) as running, channel_to(running) as channel:
        call = v1.InferenceServiceStub(channel).GenerateMany()
        endless = v1.GenerateRequest(model="translator", source=v1.Source(text="z"), max_tokens=60_000)
        endless.shaping.min_tokens = 60_000
        await call.write(v1.GenerateManyRequest(requests=[endless] * 3))
        await call.read()
        async with asyncio.timeout(10):
            while (await running.client.list_models())[0].running_count < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        call.cancel()
        await running.until_idle()


async def test_draining_server_answers_accepted_requests(translator: Bundle) -> None:
    async with serving(translator) as running, channel_to(running) as channel:
        call = v1.InferenceServiceStub(channel).GenerateMany()
        await call.write(v1.GenerateManyRequest(requests=[translation(19)] * 3))
        result = list((await call.read()).answers)
        draining = asyncio.ensure_future(running.server.drain())

        async def read_on() -> None:
            while (message := await call.read()) is not grpc.aio.EOF:
                result.extend(message.answers)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_on()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sorted(answer.request_index for answer in result if answer.last) == [0, 1, 2]
        await draining


async def test_too_large_message_is_refused(translator: Bundle) -> None:
    async with serving(translator) as running, channel_to(running) as channel:
        stub = v1.InferenceServiceStub(channel)
        big = v1.GenerateRequest(model="translator", source=v1.Source(text="z" * 5_000_000))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generated(stub, [v1.GenerateManyRequest(requests=[big])])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_client_batch_calls_equal_single_calls(translator: Bundle, tree_bundles: Mapping[str, Bundle]) -> None:
    async with serving(translator, tree_bundles["binary"]) as running, running.client.many() as many:
        expressions = [as_expression(random_tree(number, 2, 1 + number % 40))[0] for number in range(200)]
        labelled = await asyncio.gather(*(many.classify(tree=one, model="binary") for one in expressions))
        for number in range(0, 200, 37):
            assert labelled[number] == await running.client.classify(tree=expressions[number], model="binary")
        result = await asyncio.gather(
            *(many.search(source=word, width=3, model="translator", max_tokens=9) for word in WORDS),
            *(many.sample(source=word, count=2, seed=4, model="translator", max_tokens=9) for word in WORDS),
            many.search(source="z", width=2, model="nobody"),
            many.classify(tree="(a (b w1)", model="binary"),
            return_exceptions=True,
        )
        for word, searched, sampled in zip(WORDS, result[:3], result[3:6], strict=True):
            alone = await running.client.search(source=word, width=3, model="translator", max_tokens=9)
            assert [one.text for one in searched] == [one.text for one in alone]
            alone = await running.client.sample(source=word, count=2, seed=4, model="translator", max_tokens=9)
            assert [one.text for one in sampled] == [one.text for one in alone]
        assert isinstance(result[6], ModelNotFoundError)
        assert isinstance(result[7], InvalidRequestError)
        assert list(result[7].fields) == ["tree.s_expression"]


async def test_client_batch_calls_time_out_and_recover_from_a_broken_stream(translator: Bundle) -> None:
    long = {"source": "z", "model": "translator", "max_tokens": 60_000, "min_tokens": 60_000, "count": 1}
    async with serving(translator) as running:
        async with running.client.many() as many:
            with pytest.raises(DeadlineExceededError, match=r"0\.05 seconds"):
                await many.sample(**long, timeout=0.05)
            left = asyncio.ensure_future(many.sample(**long))
            await asyncio.sleep(0.1)
        with pytest.raises(UnavailableError, match="the connection was lost"):
            await left
        await running.until_idle()
        async with running.client.many() as many:  # A broken stream is opened again.
            await many.sample(source="z", model="translator", max_tokens=3, count=1)
            many._generations._running.cancel()
            await asyncio.sleep(0.1)
            (result,) = await many.sample(source="z", model="translator", max_tokens=3, min_tokens=3, count=1)
            assert len(result.token_ids) == 3
    async with Client(running.address) as client, client.many() as many:
        with pytest.raises(UnavailableError, match="cannot reach"):
            await many.sample(source="z", count=1)
