"""The rpc layer: every error of a caller has its status, reason and field, and does not affect other calls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from elman import (
    Client,
    DeadlineExceededError,
    ElmanError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
    v1,
)
from elman_server.errors import ClientTooSlowError
from elman_server.event_loop import ServerEventLoop
from elman_server.inference.delivery import Mailbox, deliver_into
from elman_server.inference.generation import updates_of
from elman_server.inference.generation_events import GenerationStarted
from elman_server.inference.generation_options import GenerationOptions, check_options
from elman_server.inference.generation_run import GenerationRun
from elman_server.inference.limits import Limits
from elman_server.rpc.responses.generation import generate_response
from elman_server.rpc.transport.callers import Context
from elman_server.rpc.transport.writer import Writer
from elman_server.scheduling import Event, Finished, FinishReason, TokenReport, Tokens
from tests.support.fake_engine import LETTERS, NAN, POISON, FakeEngine, continuation
from tests.support.rpc import check_error
from tests.support.serving import Running, serving_fake


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def running(engine: FakeEngine) -> AsyncIterator[Running]:
    async with serving_fake(engine, waiting_limit=2, write_timeout=0.5) as running:
        yield running


@pytest.fixture
async def stub(running: Running) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield v1.InferenceServiceStub(channel)


def letters(ids: list[int]) -> str:
    return "".join(LETTERS[token] for token in ids)


async def test_generation_equals_manual_computation(running: Running) -> None:
    stream = running.client.generate("abc", max_tokens=10, temperature=0)
    assert await stream.text() == letters(continuation([1, 2, 3], 10))


async def test_greedy_equals_temperature_zero(stub: Any) -> None:
    greedy = v1.GenerateRequest(text="abc", greedy=v1.GreedyDecoding())
    sampled = v1.GenerateRequest(text="abc", sampling=v1.SamplingDecoding(temperature=0))
    for request in (greedy, sampled):
        texts = [response.chunk.text async for response in stub.Generate(request)]
        assert "".join(texts) == letters(continuation([1, 2, 3], 256))


async def test_max_tokens_defaults_to_a_low_server_limit(engine: FakeEngine) -> None:
    async with serving_fake(engine, max_tokens_limit=5) as running:
        assert await running.client.generate("abc", temperature=0).text() == letters(continuation([1, 2, 3], 5))
        with pytest.raises(InvalidRequestError, match="max_tokens: got 6; must be 1 to 5"):
            await running.client.generate("abc", max_tokens=6).text()


async def test_events_come_in_order(stub: Any) -> None:
    request = v1.GenerateRequest(text="a", max_tokens=50, seed=-5, interval=Duration(seconds=0))
    responses = [response async for response in stub.Generate(request)]
    assert len(responses) > 1
    assert [response.HasField("started") for response in responses] == [True] + [False] * (len(responses) - 1)
    assert [response.HasField("finished") for response in responses] == [False] * (len(responses) - 1) + [True]
    assert all(response.HasField("chunk") for response in responses)
    assert responses[0].started.seed == -5
    assert responses[-1].finished.generated_token_count == 50


_TOO_LARGE = "a" * 30_000
_BAD_GENERATE = {
    "unknown model": (v1.GenerateRequest(model="nope", text="a"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    "no prompt": (v1.GenerateRequest(), "INVALID_ARGUMENT", "INVALID_FIELD", "text"),
    "empty prompt": (v1.GenerateRequest(text=""), "INVALID_ARGUMENT", "INVALID_FIELD", "text"),
    "empty tokens": (v1.GenerateRequest(tokens=v1.TokenSequence()), "INVALID_ARGUMENT", "INVALID_FIELD", "tokens"),
    "token outside": (
        v1.GenerateRequest(tokens=v1.TokenSequence(ids=[1, 11])), "INVALID_ARGUMENT", "INVALID_FIELD", "tokens.ids[1]",
    ),
    "negative token": (
        v1.GenerateRequest(tokens=v1.TokenSequence(ids=[-1])), "INVALID_ARGUMENT", "INVALID_FIELD", "tokens.ids[0]",
    ),
    "zero max_tokens": (
        v1.GenerateRequest(text="a", max_tokens=0), "INVALID_ARGUMENT", "INVALID_FIELD", "max_tokens",
    ),
    "negative max_tokens": (
        v1.GenerateRequest(text="a", max_tokens=-3), "INVALID_ARGUMENT", "INVALID_FIELD", "max_tokens",
    ),
    "max_tokens over the limit": (
        v1.GenerateRequest(text="a", max_tokens=5001), "INVALID_ARGUMENT", "INVALID_FIELD", "max_tokens",
    ),
    "long prompt": (v1.GenerateRequest(text="a" * 1001), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "text"),
    "long token prompt": (
        v1.GenerateRequest(tokens=v1.TokenSequence(ids=[1] * 1001)), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "tokens",
    ),
    "large message": (v1.GenerateRequest(text=_TOO_LARGE), "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", None),
    **{
        f"temperature {bad}": (
            v1.GenerateRequest(text="a", sampling=v1.SamplingDecoding(temperature=bad)),
            "INVALID_ARGUMENT", "INVALID_FIELD", "sampling.temperature",
        )
        for bad in (-0.1, float("nan"), float("inf"), float("-inf"))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", _BAD_GENERATE)
async def test_bad_generate_request(stub: Any, running: Running, engine: FakeEngine, name: str) -> None:
    request, code, reason, field = _BAD_GENERATE[name]
    other = running.client.generate("ab", max_tokens=2000, temperature=0)
    reading = asyncio.create_task(other.text())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in stub.Generate(request)]
    check_error(caught.value, code, reason, field)
    assert await reading == letters(continuation([1, 2], 2000))


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field"),
    [
        (v1.ClassifyRequest(model="nope", text="a"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
        (v1.ClassifyRequest(), "INVALID_ARGUMENT", "INVALID_FIELD", "text"),
        (v1.ClassifyRequest(text="a" * 1001), "INVALID_ARGUMENT", "INPUT_TOO_LONG", "text"),
        (v1.ClassifyRequest(text=_TOO_LARGE), "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", None),
        (
            v1.ClassifyRequest(tokens=v1.TokenSequence(ids=[99])),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            "tokens.ids[0]",
        ),
        (v1.ClassifyRequest(text=LETTERS[POISON]), "INTERNAL", "MODEL_FAILED", None),
        (v1.ClassifyRequest(text=LETTERS[NAN]), "INTERNAL", "MODEL_FAILED", None),
    ],
)
async def test_bad_classify_request(stub: Any, request_: Any, code: str, reason: str, field: str | None) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(request_)
    check_error(caught.value, code, reason, field)
    assert (await stub.Classify(v1.ClassifyRequest(text="abc"))).prediction.step_count == 3


_CONFIG = v1.StreamClassifyRequest(config=v1.StreamConfig())


def piece(text: str) -> v1.StreamClassifyRequest:
    return v1.StreamClassifyRequest(piece=v1.Piece(text=text))


@pytest.mark.parametrize(
    ("requests", "code", "reason", "field", "answers"),
    [
        ([], "INVALID_ARGUMENT", "INVALID_FIELD", "config", 0),
        ([piece("a")], "INVALID_ARGUMENT", "INVALID_FIELD", "config", 0),
        ([_CONFIG, _CONFIG], "INVALID_ARGUMENT", "INVALID_FIELD", "piece", 1),
        ([_CONFIG, piece("ab"), v1.StreamClassifyRequest()], "INVALID_ARGUMENT", "INVALID_FIELD", "piece", 2),
        (
            [v1.StreamClassifyRequest(config=v1.StreamConfig(model="nope"))],
            "NOT_FOUND",
            "MODEL_NOT_FOUND",
            "config.model",
            0,
        ),
        ([_CONFIG, piece("a"), piece("a" * 1001)], "INVALID_ARGUMENT", "INPUT_TOO_LONG", "piece.text", 2),
        ([_CONFIG, piece("a"), piece(_TOO_LARGE)], "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", None, 2),
        ([_CONFIG, piece("a"), piece(LETTERS[POISON])], "INTERNAL", "MODEL_FAILED", None, 2),
    ],
)
async def test_bad_stream(
    stub: Any, requests: list[Any], code: str, reason: str, field: str | None, answers: int
) -> None:
    call = stub.StreamClassify(iter(requests))
    for _ in range(answers):
        assert await call.read() is not grpc.aio.EOF
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    check_error(caught.value, code, reason, field)


async def test_stream_equals_manual_computation(running: Running) -> None:
    pieces = ["ab", "", "c", "aa"]
    predictions = [prediction async for prediction in running.client.stream_classify(pieces)]
    assert [[step.name for step in prediction.steps] for prediction in predictions] == [
        ["sum1", "sum3"], [], ["sum6"], ["sum7", "sum8"],
    ]  # fmt: skip
    assert [prediction.step_count for prediction in predictions] == [2, 2, 3, 5]


async def test_empty_piece_keeps_the_current_prediction(engine: FakeEngine) -> None:
    async with serving_fake(engine, every_step=False) as running:
        predictions = [prediction async for prediction in running.client.stream_classify(["", "ab", "", "c"])]
    assert [prediction.labels[0].name if prediction.labels else None for prediction in predictions] == [
        None, "sum3", "sum3", "sum6",
    ]  # fmt: skip
    assert [prediction.step_count for prediction in predictions] == [0, 2, 2, 3]


async def test_characters_outside_the_vocabulary_are_read_as_the_unknown_token(running: Running) -> None:
    stream = running.client.generate("aXbéc語", max_tokens=5, temperature=0)
    assert await stream.text() == letters(continuation([1, 0, 2, 0, 3, 0], 5))
    assert (stream.prompt_token_count, stream.unknown_token_count) == (6, 3)


async def test_full_queue_is_reported_and_temporary(running: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    streams = [running.client.generate("a", max_tokens=3, temperature=0) for _ in range(engine.capacity)]
    texts = [asyncio.create_task(stream.text()) for stream in streams]
    async with asyncio.timeout(10):
        while (await running.client.list_models())[0].running_count < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # The engine is blocked in a step: the first request runs, and two others may wait.
    refused = []
    for _ in range(engine.capacity + 2):
        stream = running.client.generate("b", max_tokens=3, temperature=0)
        texts.append(asyncio.create_task(stream.text()))
    done, _ = await asyncio.wait(texts, timeout=2)
    refused = [task.exception() for task in done]
    assert refused
    for error in refused:
        assert isinstance(error, OverloadedError)
        assert (error.reason, error.metadata) == ("QUEUE_FULL", {"limit": "2"})
    engine.gate.set()
    finished = [await task for task in texts if task not in done]
    assert set(finished) <= {letters(continuation([1], 3)), letters(continuation([2], 3))}
    assert await running.client.generate("c", max_tokens=3, temperature=0).text() == letters(continuation([3], 3))


async def test_deadline_of_a_waiting_request_frees_its_queue_entry() -> None:
    engine = FakeEngine(capacity=1)

    async def until(running_count: int, waiting_count: int) -> None:
        async with asyncio.timeout(10):
            while True:
                (model,) = await running.client.list_models()
                if (model.running_count, model.waiting_count) == (running_count, waiting_count):
                    return
                await asyncio.sleep(0.01)

    async with serving_fake(engine) as running:
        engine.gate.clear()
        first = asyncio.create_task(running.client.generate("a", max_tokens=3, temperature=0).text())
        await until(1, 0)
        late = asyncio.create_task(running.client.generate("a", timeout=1).text())
        await until(1, 1)
        with pytest.raises(DeadlineExceededError):
            await late
        await until(1, 0)
        engine.gate.set()
        assert await first == letters(continuation([1], 3))
        await until(0, 0)


async def test_call_of_a_client_that_never_reads_is_cancelled(engine: FakeEngine) -> None:
    async with (
        serving_fake(engine, write_timeout=0.3, max_tokens_limit=200_000) as running,
        grpc.aio.insecure_channel(
            running.address, options=[("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
        ) as channel,
    ):
        call = v1.InferenceServiceStub(channel).Generate(v1.GenerateRequest(text="a", max_tokens=200_000))
        await asyncio.sleep(0.1)
        other = await running.client.generate("ab", max_tokens=500, temperature=0).text()
        assert other == letters(continuation([1, 2], 500))
        await running.until_idle()
        async with asyncio.timeout(10):
            while running.server.active_calls:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        # If the client reads after all, it receives what was sent and then the error.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in call]
    check_error(caught.value, "RESOURCE_EXHAUSTED", "CLIENT_TOO_SLOW", None)


class _Unread:
    """A call whose client does not read."""

    async def write(self, message: object) -> None:
        await asyncio.Event().wait()


async def test_call_of_an_unresponsive_client_can_be_cancelled() -> None:
    """This also holds if the server gives up on the client at the same moment."""
    writer, context, message = Writer(0.04), cast(Context, _Unread()), v1.GenerateResponse()
    given_up, cancelled, both = (asyncio.create_task(writer.write(context, message)) for _ in range(3))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait((cancelled,))
    assert cancelled.cancelled()
    while not both.cancelling():  # noqa: ASYNC110
        await asyncio.sleep(0)
    both.cancel()
    await asyncio.wait((given_up, both))
    assert both.cancelled()
    assert isinstance(given_up.exception(), ClientTooSlowError)


@pytest.mark.parametrize("single", [False, True])
async def test_queued_reports_are_sent_in_messages_of_bounded_size(running: Running, single: bool) -> None:
    (model,) = running.server.models
    ids = continuation([1], 3000)
    news = asyncio.Event()
    mailbox = Mailbox(news)
    likely = tuple((token, -float(token)) for token in range(1, 11))
    mailbox.receive(Tokens(tuple(ids), tuple(TokenReport(-0.5 - index, likely) for index in range(3000))))
    mailbox.receive(Finished(FinishReason.MAX_TOKENS, 3000))
    started = GenerationStarted("fake", "", 0, 1, 0)
    settings = check_options(
        GenerationOptions(single_tokens=single, report_count=10), model, Limits(5000, 1000, 20_000)
    )
    run = GenerationRun(model, settings, started, 0.0, news, [mailbox], lambda: None)
    written = [generate_response(update) async for update in updates_of(run)]
    chunks = [response.chunk for response in written]
    assert [token for chunk in chunks for token in chunk.token_ids] == ids
    assert "".join(chunk.text for chunk in chunks) == letters(ids)
    assert [report.log_probability for chunk in chunks for report in chunk.reports] == [-0.5 - n for n in range(3000)]
    assert all(len(chunk.reports) == len(chunk.token_ids) == len(chunk.text) for chunk in chunks)
    assert [response.HasField("started") for response in written] == [True] + [False] * (len(written) - 1)
    assert [response.HasField("finished") for response in written] == [False] * (len(written) - 1) + [True]
    assert max(response.ByteSize() for response in written) < 70_000
    assert len(written) == 3000 if single else len(written) < 20


async def test_defect_is_opaque_to_the_client(
    stub: Any, running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("elman_server.inference.prefix_cache.PrefixCache.statistics", explode)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModels(v1.ListModelsRequest())
    check_error(caught.value, "INTERNAL", "INTERNAL", None)
    assert caught.value.details() == "internal error"
    assert "secret" in capsys.readouterr().out  # The log has the details.


async def test_values_that_the_client_cannot_encode_are_invalid_requests(running: Running) -> None:
    client = running.client
    wrong: dict[str, Callable[[], Awaitable[object]]] = {
        "time_limit: got inf; it must be a number of seconds": lambda: client.generate("a", time_limit=math.inf).text(),
        "time_limit: got 1e\\+300; it must be a number of seconds": lambda: client.sample(
            "a", count=2, time_limit=1e300
        ),
        "time_limit: got nan; it must be a number of seconds": lambda: client.search("a", width=2, time_limit=math.nan),
        "interval: got inf; it must be a number of seconds": lambda: client.generate("a", interval=math.inf).text(),
        "too large": lambda: client.generate("a", temperature=10**400).text(),
        "timeout: got nan; it must be": lambda: client.list_models(timeout=math.nan),
        "surrogates": lambda: client.sample("a", count=2, model="\ud800"),
        "surrogates ": lambda: client.search("a", width=2, model="\ud800"),
        "surrogates  ": lambda: client.get_model("\ud800"),
    }
    for error_message, call in wrong.items():
        with pytest.raises(InvalidRequestError, match=f"the request cannot be expressed: .*{error_message.rstrip()}"):
            await call()


async def test_infinite_timeout_means_no_deadline(running: Running) -> None:
    for timeout in (math.inf, 8e9, 1e300):
        assert await running.client.generate("ab", max_tokens=3, timeout=timeout).text()
        assert (await running.client.classify("ab", timeout=timeout)).steps
        async with Client(running.address, timeout=timeout) as client:
            assert await client.list_models()
    with pytest.raises(ValueError, match="timeout: got nan; it must be a number of seconds"):
        Client(running.address, timeout=math.nan)


async def test_client_raises_its_own_exceptions(running: Running) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"name: got 'nope'; there is no such model; this server holds fake"
    ) as not_found:
        await running.client.get_model("nope")
    assert not_found.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(InvalidRequestError) as invalid:
        await running.client.generate("a", temperature=-1).text()
    assert invalid.value.fields == {"sampling.temperature": "got -1.0; must be finite and not negative"}
    with pytest.raises(ServerError) as failed:
        await running.client.classify("aj")
    assert failed.value.reason == "MODEL_FAILED"
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError, match=r"cannot reach 127\.0\.0\.1:1: is a server running there\?"):
            await client.list_models()


async def test_long_names_fit_into_a_status(stub: Any, running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(v1.ClassifyRequest(model="x" * 15_000, text="a"))
    check_error(caught.value, "NOT_FOUND", "MODEL_NOT_FOUND", "model")
    assert len(caught.value.details() or "") < 300


LONG_TEXT = "\N{EVERGREEN TREE}" * 9000
_CALL = v1.SessionCall(session_id="x" * 9000)
LONG_REQUESTS: list[tuple[str, Any, str]] = [
    ("Generate", v1.GenerateRequest(text="a", session=_CALL), "session.session_id"),
    ("Classify", v1.ClassifyRequest(text="a", session=_CALL), "session.session_id"),
    ("Generate", v1.GenerateRequest(text="a", constraint=v1.Constraint(regex=f"{LONG_TEXT}(")), "constraint"),
    (
        "Generate",
        v1.GenerateRequest(text="a", constraint=v1.Constraint(json_schema=f'{{"{LONG_TEXT}": 1}}')),
        "constraint",
    ),
    ("Generate", v1.GenerateRequest(text="a", constraint=v1.Constraint(lark_grammar=f"<{LONG_TEXT}>")), "constraint"),
    ("GetSession", v1.GetSessionRequest(session_id="x" * 9000), "session_id"),
    ("DeleteSession", v1.DeleteSessionRequest(session_id=LONG_TEXT), "session_id"),
]


@pytest.mark.parametrize(("call", "request_", "field"), LONG_REQUESTS)
async def test_long_texts_fit_into_a_status(engine: FakeEngine, call: str, request_: Any, field: str) -> None:
    async def answer(stub: Any) -> None:
        answered = getattr(stub, call)(request_)
        _ = [response async for response in answered] if call == "Generate" else await answered

    async with (
        serving_fake(engine, max_tokens_limit=65_536, input_limit=65_536, message_limit=4_194_304) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = v1.SessionServiceStub(channel) if "Session" in call else v1.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer(stub)
    check_error(caught.value, "INVALID_ARGUMENT", "INVALID_FIELD", field)
    assert len((caught.value.details() or "").encode()) < 1050


@pytest.mark.parametrize(
    "changes", [{"seed": 10**20}, {"max_tokens": 2**31}, {"prompt": [2**31]}, {"prompt": "caf\udce9"}]
)
async def test_values_that_the_protocol_cannot_express_are_invalid_requests(
    running: Running, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be expressed"):
        await running.client.generate(**{"prompt": "a", **changes}).text()


async def test_cancelling_ends_iteration_without_an_error(running: Running) -> None:
    stream = running.client.generate("a", max_tokens=5000)
    count = 0
    async for _ in stream:
        count += 1
        stream.cancel()
    assert count >= 1
    assert stream.finish_reason is None
    await running.until_idle()


async def test_a_cancelled_task_stays_cancelled(running: Running) -> None:
    task = asyncio.create_task(running.client.generate("a", max_tokens=5000).text())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stream_deadline_expires_between_pieces(running: Running) -> None:
    async def pieces() -> AsyncIterator[str]:
        yield "ab"
        await asyncio.sleep(0.6)
        yield "c"

    with pytest.raises(DeadlineExceededError):
        _ = [prediction async for prediction in running.client.stream_classify(pieces(), timeout=0.3)]


async def test_number_of_open_streams_is_bounded(engine: FakeEngine) -> None:
    async with serving_fake(engine, waiting_limit=0) as running:
        opened = [running.client.stream_classify(["a", "b"]) for _ in range(engine.capacity)]
        for predictions in opened:
            await anext(predictions)
        with pytest.raises(OverloadedError) as refused:
            await anext(running.client.stream_classify(["a"]))
        assert refused.value.reason == "QUEUE_FULL"
        for predictions in opened:
            await predictions.aclose()
        async with asyncio.timeout(10):
            while running.server.active_calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await anext(running.client.stream_classify(["a"]))).step_count == 1


async def test_draining_ends_streams_that_wait_for_their_next_piece(engine: FakeEngine) -> None:
    async with serving_fake(engine) as running:
        drained = asyncio.Event()

        async def pieces() -> AsyncIterator[str]:
            yield "ab"
            await drained.wait()
            yield "c"

        predictions = running.client.stream_classify(pieces())
        assert (await anext(predictions)).step_count == 2
        async with asyncio.timeout(3):  # less than the drain timeout
            await running.server.drain()
        drained.set()
        with pytest.raises(UnavailableError) as caught:
            await anext(predictions)
        assert caught.value.reason == "SERVER_DRAINING"


async def test_draining_finishes_running_requests_and_refuses_new_ones(engine: FakeEngine) -> None:
    async with serving_fake(engine) as running:
        engine.gate.clear()
        stream = running.client.generate("ab", max_tokens=50, temperature=0)
        text = asyncio.create_task(stream.text())
        async with asyncio.timeout(10):
            while not (await running.client.list_models())[0].running_count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        draining = asyncio.create_task(running.server.drain())
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError) as refused:
            await running.client.list_models()
        assert refused.value.reason == "SERVER_DRAINING"
        engine.gate.set()
        assert await text == letters(continuation([1, 2], 50))
        await draining


async def test_requests_cut_off_by_draining_receive_an_error(engine: FakeEngine) -> None:
    async with serving_fake(engine, drain_timeout=0.2) as running:
        stream = running.client.generate("ab", max_tokens=5000, temperature=0)
        chunks = aiter(stream)
        await anext(chunks)
        engine.gate.clear()
        draining = asyncio.create_task(running.server.drain())
        await asyncio.sleep(0.4)
        engine.gate.set()
        with pytest.raises(ElmanError) as cut:
            _ = [chunk async for chunk in chunks]
        assert cut.value.reason == "SERVER_DRAINING"
        await draining


def test_results_of_a_chunk_are_emitted_in_order_before_the_next_chunk_starts() -> None:
    """A busy event loop delays the model only for a short time."""

    async def talk() -> None:
        mailbox, deliver = Mailbox(), deliver_into(ServerEventLoop.running())
        written: list[Event] = []

        async def write() -> None:
            written.extend(await mailbox.next_events())

        writer = asyncio.create_task(write())
        await asyncio.sleep(0)
        events: list[Event] = [Tokens((1,)), Tokens((2,))]

        def hand_over() -> list[Event]:
            deliver([(mailbox, event) for event in events])
            return list(written)

        assert await asyncio.to_thread(hand_over) == events
        await writer
        with ThreadPoolExecutor(1) as thread:
            handing_over = thread.submit(deliver, [])
            handing_over.result(timeout=10)  # blocks the loop in the meantime

    with asyncio.Runner(loop_factory=ServerEventLoop) as runner:
        runner.run(talk())
