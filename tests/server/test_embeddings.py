"""Embeddings and inspections with a real server: equal to a plain onnxruntime loop to the bit."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest

from elman import InspectedStep, InspectionStream, InvalidRequestError, ServerError, Token, Unit
from elman.cli.inspecting import as_given
from elman_bundle import Bundle
from elman_protos import v1
from tests.support.bundles import CHARACTERS, byte_bundle, make_small_network, write_network
from tests.support.fake_engine import LETTERS, POISON, FakeEngine, continuation, fake_bundle
from tests.support.reference import read_alone
from tests.support.rpc import check_error
from tests.support.scores import random_text, until
from tests.support.serving import Running, serving, serving_fake
from tests.support.shared import shared_bundle

Bundles = Mapping[str, Bundle]
MODELS = ["elman", "lstm", "gru", "lstm-int8", "tags", "classes"]


def random_texts(count: int) -> list[str]:
    random = np.random.default_rng(3)
    return [random_text(random, int(length)) for length in random.integers(1, 60, count)]


async def collected(stream: InspectionStream) -> list[InspectedStep]:
    return [step async for step in stream]


@pytest.mark.parametrize("name", MODELS)
async def test_embedding_equals_the_state_of_a_plain_loop(bundles: Bundles, name: str) -> None:
    inputs = random_texts(40)
    async with serving(bundles[name], slots=16) as running:
        last = await running.client.embed(inputs)
        every = await running.client.embed(inputs, every_step=True)
    for text, at_the_end, on_the_way in zip(inputs, last, every, strict=True):
        ids = CHARACTERS.encode(text).tolist()
        _, states = read_alone(bundles[name], ids)
        assert list(at_the_end.tensors) == list(on_the_way.tensors) == list(states)
        assert (at_the_end.step_count, at_the_end.token_ids) == (len(ids), ())
        assert (on_the_way.step_count, list(on_the_way.token_ids)) == (len(ids), ids)
        for state, values in states.items():
            assert at_the_end.tensors[state].to_numpy().tobytes() == values[-1].tobytes()
            assert at_the_end.tensors[state].shape == values.shape[1:]
            assert on_the_way.tensors[state].to_numpy().tobytes() == values.tobytes()
            assert on_the_way.tensors[state].shape == values.shape


@pytest.mark.parametrize("name", MODELS)
async def test_output_equals_that_of_a_plain_loop(bundles: Bundles, name: str) -> None:
    inputs = random_texts(10)
    async with serving(bundles[name]) as running:
        last = await running.client.embed(inputs, output="logits")
        every = await running.client.embed(inputs, output="logits", every_step=True)
    for text, at_the_end, on_the_way in zip(inputs, last, every, strict=True):
        outputs, _ = read_alone(bundles[name], CHARACTERS.encode(text).tolist())
        assert list(at_the_end.tensors) == list(on_the_way.tensors) == ["logits"]
        assert at_the_end.tensors["logits"].to_numpy().tobytes() == outputs["logits"][-1].tobytes()
        assert at_the_end.tensors["logits"].values() == tuple(outputs["logits"][-1].tolist())
        assert on_the_way.tensors["logits"].to_numpy().tobytes() == outputs["logits"].tobytes()


async def test_states_are_returned_by_name_in_the_requested_order(bundles: Bundles) -> None:
    async with serving(bundles["lstm"]) as running:
        (everything,) = await running.client.embed(["abc"])
        names = ["state.layer1.cell", "state.layer0.hidden"]
        (chosen,) = await running.client.embed(["abc"], states=names)
        assert list(chosen.tensors) == names
        assert all(chosen.tensors[name] == everything.tensors[name] for name in names)
        by_ids = await running.client.embed([CHARACTERS.encode("abc").tolist()])
        assert by_ids == [everything]
        (unknown,) = await running.client.embed(["a€"])
        assert unknown.unknown_token_count == 1


@pytest.mark.parametrize("name", ["lstm-int8", "tags"])
async def test_inspected_units_equal_those_of_the_embedding(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("elman_server.inference.inspect._PART_STEPS", 7)
    text = random_text(np.random.default_rng(5), 60)
    async with serving(bundles[name]) as running:
        (embedding,) = await running.client.embed([text], every_step=True)
        states = {state: tensor.to_numpy() for state, tensor in embedding.tensors.items()}
        stream = running.client.inspect(text)
        steps = await collected(stream)
        assert "".join(step.text for step in steps) == text
        assert [step.token_id for step in steps] == list(embedding.token_ids)
        assert stream.units == tuple(Unit(state, index) for state in states for index in range(37))
        result = np.array([step.values for step in steps], np.float32)
        assert result.tobytes() == np.hstack(list(states.values())).tobytes()
        assert (stream.step_count, stream.model) == (60, name)
        first, *_, last = states
        some = running.client.inspect(text, units={last: [36, 0, 36], first: [5]})
        values = [step.values for step in await collected(some)]
        assert some.units == (Unit(last, 36), Unit(last, 0), Unit(last, 36), Unit(first, 5))
        expected = np.hstack([states[last][:, [36, 0, 36]], states[first][:, [5]]])
        assert np.array(values, np.float32).tobytes() == expected.tobytes()


async def test_character_of_several_tokens_is_reported_at_its_last_token() -> None:
    async with serving(byte_bundle()) as running:
        steps = await collected(running.client.inspect("aé🌲", units={"state.layer0.hidden": [4]}))
        assert [step.text for step in steps] == ["a", "", "é", "", "", "", "🌲"]
        score = await running.client.score("é🌲")
        assert [token.text for token in score.tokens] == ["é", "", "", "", "🌲"]
        cut = await collected(running.client.inspect([97, 0xC3], units={"state.layer0.hidden": [4]}))
        assert [step.text for step in cut] == ["a", "\N{REPLACEMENT CHARACTER}"]


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


async def test_embedding_equals_manual_computation(running: Running) -> None:
    last = await running.client.embed(["abc", "hh", "a"])
    assert [embedding.tensors["total"].values() for embedding in last] == [(6,), (16,), (1,)]
    assert {embedding.tensors["total"].shape for embedding in last} == {()}
    (every,) = await running.client.embed(["abcab"], every_step=True)
    assert every.tensors["total"].to_numpy().tolist() == [1, 3, 6, 7, 9]
    assert every.tensors["total"].data_type == "int64"
    steps = await collected(running.client.inspect("abcab"))
    assert [step.values for step in steps] == [(1,), (3,), (6,), (7,), (9,)]
    assert steps[2] == InspectedStep(token_id=3, text="c", values=(6,))


async def test_begin_token_is_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fake_bundle()
    bundle.spec.vocabularies[0].begin_token_id = 4
    monkeypatch.setattr("tests.support.serving.fake_bundle", lambda *_, **__: bundle)
    async with serving_fake(FakeEngine()) as running:
        (embedding,) = await running.client.embed(["ab"], every_step=True)
        assert embedding.token_ids == (4, 1, 2)
        assert embedding.tensors["total"].values() == (4, 5, 7)
        stream = running.client.inspect("ab")
        assert [(step.token_id, step.values) for step in await collected(stream)] == [(4, (4,)), (1, (5,)), (2, (7,))]
        assert stream.step_count == 3


async def test_begin_token_is_not_part_of_the_text() -> None:
    begin = int(CHARACTERS.encode("\n")[0])
    network = make_small_network(CHARACTERS.size)
    token = Token(CHARACTERS, begin_id=begin)
    async with serving(
        shared_bundle("begun", lambda folder: write_network(network, folder, "begun", token))
    ) as running:
        for text in ("ab . c", "\na"):
            steps = await collected(running.client.inspect(text))
            assert [step.token_id for step in steps] == [begin, *CHARACTERS.encode(text)]
            texts = [step.text for step in steps]
            assert texts == ["", *text]
            assert as_given(texts, text) == texts
        assert as_given([step.text for step in await collected(running.client.inspect("a?"))], "a?") == ["", "a", "?"]


def inputs(*given: str, **rest: Any) -> v1.EmbedRequest:
    return v1.EmbedRequest(inputs=[v1.AnalysisInput(text=text) for text in given], **rest)


def inspection(text: str, **rest: Any) -> v1.InspectRequest:
    return v1.InspectRequest(input=v1.AnalysisInput(text=text), **rest)


def units(*indices: int, state_name: str = "total") -> list[v1.UnitSelection]:
    return [v1.UnitSelection(state_name=state_name, indices=indices)]


_WRONG = ("INVALID_ARGUMENT", "INVALID_FIELD")
_BAD: dict[str, tuple[v1.EmbedRequest | v1.InspectRequest, str, str, str | None]] = {
    "embed with an unknown model": (inputs("a", model="nope"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    "no inputs": (inputs(), *_WRONG, "inputs"),
    "too many inputs": (inputs(*[""] * 16_385), "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", None),
    "empty input": (inputs("a", ""), *_WRONG, "inputs[1]"),
    "token outside": (
        v1.EmbedRequest(inputs=[v1.AnalysisInput(tokens=v1.TokenSequence(ids=[1, 11]))]),
        *_WRONG, "inputs[0].tokens.ids[1]",
    ),
    "long input": (inputs("a" * 1001), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "inputs[0].text"),
    "long inputs in all": (inputs(*["a" * 1000] * 17), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "inputs[16]"),
    "unknown state": (inputs("a", states=v1.StateNames(names=["total", "sum"])), *_WRONG, "states.names[1]"),
    "state named twice": (inputs("a", states=v1.StateNames(names=["total"] * 2)), *_WRONG, "states.names[1]"),
    "unknown output": (inputs("a", output="total"), *_WRONG, "output"),
    "large answer": (
        inputs(*["a" * 500] * 4, output="logits", every_step=True), "INVALID_ARGUMENT", "ANSWER_TOO_LARGE", "inputs",
    ),
    "inspect an unknown model": (inspection("a", model="nope"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    "nothing to inspect": (inspection(""), *_WRONG, "input"),
    "no input": (v1.InspectRequest(), *_WRONG, "input"),
    "long inspection": (inspection("a" * 1001), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "input.text"),
    "unit of no state": (inspection("a", units=[v1.UnitSelection()]), *_WRONG, "units[0].state_name"),
    "unit of an unknown state": (inspection("a", units=units(0, state_name="sum")), *_WRONG, "units[0].state_name"),
    "unit outside": (inspection("a", units=units(0, 1)), *_WRONG, "units[0].indices[1]"),
    "negative unit": (inspection("a", units=units(-1)), *_WRONG, "units[0].indices[0]"),
    "state inspected twice": (inspection("a", units=units(0) * 2), *_WRONG, "units[1].state_name"),
    "too many units": (
        inspection("a", units=units(*[0] * 6000)), "INVALID_ARGUMENT", "ANSWER_TOO_LARGE", "units",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _BAD)
async def test_bad_request(stub: Any, running: Running, name: str) -> None:
    request, code, reason, field = _BAD[name]
    other = asyncio.create_task(running.client.generate("ab", max_tokens=1000, temperature=0).text())

    async def answer() -> None:
        if isinstance(request, v1.EmbedRequest):
            await stub.Embed(request)
        else:
            _ = [response async for response in stub.Inspect(request)]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer()
    check_error(caught.value, code, reason, field)
    assert await other == "".join(LETTERS[token] for token in continuation([1, 2], 1000))


async def test_largest_response_is_sent_and_larger_ones_are_rejected_with_their_size(
    bundles: Bundles,
) -> None:
    async with serving(bundles["lstm"], message_limit=100_000) as running:
        text = "a" * 160  # 160 steps of 4 states of 37 numbers: 94,720 bytes
        (embedding,) = await running.client.embed([text], every_step=True)
        assert embedding.tensors["state.layer1.cell"].shape == (160, 37)
        with pytest.raises(InvalidRequestError, match="for the last step only") as caught:
            await running.client.embed([text, "a" * 20], every_step=True)
        assert caught.value.metadata["limit"] == "100000"
        assert 106_560 <= int(caught.value.metadata["size"]) <= 110_000
        assert len(await running.client.embed([text, "a" * 20])) == 2
        assert len(await collected(running.client.inspect(text * 20))) == 3200  # streamed, without a limit


async def test_inspection_of_many_units_uses_little_memory(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elman_server.inference.inspect._PART_BYTES", 1_000_000)
    tracemalloc.start()
    try:
        steps = 0
        async for response in stub.Inspect(inspection("a" * 256, units=units(*[0] * 4900))):
            steps += len(response.steps)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert steps == 256
    assert peak < 5_000_000


async def test_stateless_model_returns_only_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fake_bundle()
    del bundle.spec.step.states[:]
    monkeypatch.setattr("tests.support.serving.fake_bundle", lambda *_, **__: bundle)
    async with serving_fake(FakeEngine()) as running:
        with pytest.raises(InvalidRequestError, match=r"states: got none; .*carries no state\. Choose an output"):
            await running.client.embed(["a"])
        with pytest.raises(InvalidRequestError, match=r"the states of .* are: none"):
            await running.client.embed(["a"], states=["total"])
        with pytest.raises(InvalidRequestError, match="carries no state"):
            await collected(running.client.inspect("a"))
        (embedding,) = await running.client.embed(["a"], output="labels")
        assert np.argmax(embedding.tensors["labels"].to_numpy()) == 1


async def test_model_name_is_required_with_several_models(bundles: Bundles) -> None:
    async with serving(bundles["gru"], bundles["tags"]) as running:
        with pytest.raises(InvalidRequestError, match="2 models of this server can read an input: gru, tags"):
            await running.client.embed(["a"])
        with pytest.raises(InvalidRequestError, match="2 models of this server can read an input: gru, tags"):
            await collected(running.client.inspect("a"))


async def test_values_that_the_protocol_cannot_express_are_rejected(running: Running) -> None:
    with pytest.raises(InvalidRequestError, match="a list of texts is needed"):
        await running.client.embed("abc")
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        await running.client.embed(["abc"], states=["total"], output="logits")


async def test_failing_input_is_named_and_does_not_affect_others(running: Running) -> None:
    other = asyncio.create_task(running.client.generate("ab", max_tokens=500, temperature=0).text())
    concurrent = asyncio.create_task(running.client.embed(["abc"] * 30, every_step=True))
    with pytest.raises(ServerError, match=r"inputs\[2\]: "):
        await running.client.embed(["a", "b", f"a{LETTERS[POISON]}"], every_step=True)
    with pytest.raises(ServerError, match=r"inputs\[1\]: "):
        await running.client.embed(["ab", f"{LETTERS[POISON]}a"])
    with pytest.raises(ServerError):
        await collected(running.client.inspect(f"a{LETTERS[POISON]}"))
    assert {embedding.tensors["total"].values() for embedding in await concurrent} == {(1, 3, 6)}
    assert await other == "".join(LETTERS[token] for token in continuation([1, 2], 500))


async def test_cancelled_call_frees_its_slots(running: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    embedding = asyncio.create_task(running.client.embed(["abc" * 300] * 10))
    await until(running, 4)  # half of the slots
    inspecting = asyncio.create_task(collected(running.client.inspect("abc")))
    await until(running, 5)
    for task in (embedding, inspecting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.1)
    engine.gate.set()
    await running.until_idle()
    assert len(engine.runs) < 10
    assert len(await running.client.embed(["abc"] * 100)) == 100


async def test_leaving_an_inspection_frees_the_slot(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elman_server.inference.inspect._PART_STEPS", 2)
    async for step in running.client.inspect("abc" * 300):
        assert step == InspectedStep(1, "a", (1,))
        break
    await running.until_idle()
