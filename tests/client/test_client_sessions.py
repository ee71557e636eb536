"""Sessions on the client's side, with a scripted server that breaks calls off, refuses them and records them."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from elman import (
    Client,
    DeadlineExceededError,
    ElmanError,
    FinishReason,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    UnavailableError,
    v1,
)
from tests.support.command_line import check_failure, elman

STORY = "aé語🌲z"
TOKENS = list(STORY.encode())  # A token is a byte, so that an interruption can split a character.
MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
USED = datetime(2026, 1, 2, 3, 4, 6, 500_000, tzinfo=UTC)


async def fail(context: Any, code: str, reason: str = "", **metadata: str) -> None:
    """Abort a call as the server does, or, without a reason, as the transport does."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=f"this is {reason or code}")
    if reason:
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="elman.dev", metadata=metadata))
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))


def text_of(count: int) -> str:
    """Return the text of the first tokens, complete characters only."""
    return codecs.getincrementaldecoder("utf-8")().decode(bytes(TOKENS[:count]))


class ScriptedServer(v1.InferenceServiceServicer, v1.SessionServiceServicer):
    """A server that interrupts calls as scripted and records them.

    Attributes:
        seen: method, request and metadata of every call.
        breaks: for each call that runs a model, in order, the number of new tokens that it sends before it is
            interrupted; later calls are answered completely.
        failure: how a call is interrupted.
        sessions: the tokens of each session, by its id.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, dict[str, str]]] = []
        self.breaks: list[int] = []
        self.failure: Callable[[Any], Any] = lambda context: fail(context, "UNAVAILABLE", "SERVER_DRAINING")
        self.sessions: dict[str, list[int]] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    def record(self, name: str, request: Message, context: Any) -> None:
        copied = type(request)()
        copied.CopyFrom(request)
        self.seen.append((name, copied, dict(context.invocation_metadata())))

    def requests(self) -> list[Any]:
        return [request for _, request, _ in self.seen]

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[v1.GenerateResponse]:
        self.record("Generate", request, context)
        last = len(TOKENS)
        broken = bool(self.breaks)
        if broken:
            last = min(last, request.received_token_count + self.breaks.pop(0))
        yield v1.GenerateResponse(started=v1.GenerateStarted(model="bytes", seed=7, session_position=3))
        for count in range(request.received_token_count, last):
            chunk = v1.GenerateChunk(text=text_of(count + 1).removeprefix(text_of(count)), token_ids=[TOKENS[count]])
            yield v1.GenerateResponse(chunk=chunk)
            await self.gate.wait()
        if broken:
            await self.failure(context)
        finished = v1.GenerateFinished(
            finish_reason=v1.FINISH_REASON_MAX_TOKENS,
            generated_token_count=len(TOKENS),
            session_position=3 + len(TOKENS),
        )
        yield v1.GenerateResponse(finished=finished)

    async def Classify(self, request: Any, context: Any) -> v1.ClassifyResponse:
        self.record("Classify", request, context)
        if self.breaks:
            self.breaks.pop(0)
            await self.failure(context)
        await self.gate.wait()
        return v1.ClassifyResponse(prediction=v1.Prediction(step_count=1), session_position=9)

    async def StreamClassify(self, requests: Any, context: Any) -> AsyncIterator[v1.StreamClassifyResponse]:
        position = 0
        async for request in requests:
            self.record("StreamClassify", request, context)
            if request.HasField("config"):
                position = request.config.session.position
                yield v1.StreamClassifyResponse(started=v1.StreamStarted(model="bytes"))
            else:
                position += len(request.piece.text)
                yield v1.StreamClassifyResponse(result=v1.PieceResult(session_position=position))

    def session(self, session_id: str) -> v1.Session:
        session = v1.Session(session_id=session_id, model="bytes", digest="sha256:0", seed=7, running=session_id == "b")
        session.position = len(self.sessions[session_id])
        session.create_time.FromDatetime(MADE)
        session.use_time.FromDatetime(USED)
        return session

    async def known(self, session_id: str, context: Any) -> list[int]:
        if session_id not in self.sessions:
            await fail(context, "NOT_FOUND", "SESSION_NOT_FOUND")
        return self.sessions[session_id]

    async def keep(self, session_id: str, tokens: list[int], context: Any) -> v1.Session:
        if session_id in self.sessions:
            await fail(context, "ALREADY_EXISTS", "SESSION_EXISTS")
        self.sessions[session_id] = tokens
        return self.session(session_id)

    async def CreateSession(self, request: Any, context: Any) -> v1.CreateSessionResponse:
        self.record("CreateSession", request, context)
        tokens = list(request.text.encode()) or list(request.tokens.ids)
        return v1.CreateSessionResponse(session=await self.keep(request.session_id, tokens, context))

    async def GetSession(self, request: Any, context: Any) -> v1.GetSessionResponse:
        self.record("GetSession", request, context)
        tokens = await self.known(request.session_id, context)
        response = v1.GetSessionResponse(session=self.session(request.session_id))
        if request.with_tokens:
            response.tokens.ids.extend(tokens)
            response.text = bytes(tokens).decode()
        return response

    async def ListSessions(self, request: Any, context: Any) -> v1.ListSessionsResponse:
        self.record("ListSessions", request, context)
        later_ids = sorted(session_id for session_id in self.sessions if session_id > request.page_token)
        token = later_ids[1] if len(later_ids) > 2 else ""
        return v1.ListSessionsResponse(sessions=map(self.session, later_ids[:2]), next_page_token=token)

    async def DeleteSession(self, request: Any, context: Any) -> v1.DeleteSessionResponse:
        self.record("DeleteSession", request, context)
        await self.known(request.session_id, context)
        del self.sessions[request.session_id]
        return v1.DeleteSessionResponse()

    async def ForkSession(self, request: Any, context: Any) -> v1.ForkSessionResponse:
        self.record("ForkSession", request, context)
        tokens = await self.known(request.session_id, context)
        tokens = tokens[: request.position if request.HasField("position") else None]
        return v1.ForkSessionResponse(session=await self.keep(request.new_session_id, tokens, context))

    async def RewindSession(self, request: Any, context: Any) -> v1.RewindSessionResponse:
        self.record("RewindSession", request, context)
        del (await self.known(request.session_id, context))[request.position :]
        return v1.RewindSessionResponse(session=self.session(request.session_id))

    async def ExportSession(self, request: Any, context: Any) -> v1.ExportSessionResponse:
        self.record("ExportSession", request, context)
        tokens = await self.known(request.session_id, context)
        return v1.ExportSessionResponse(content=exported(request.session_id, tokens))

    async def ImportSession(self, request: Any, context: Any) -> v1.ImportSessionResponse:
        self.record("ImportSession", request, context)
        length = int.from_bytes(request.content[:8], "little")
        session_id = request.session_id or json.loads(request.content[8 : 8 + length])["__metadata__"]["session_id"]
        tokens = list(request.content[8 + length :])
        return v1.ImportSessionResponse(session=await self.keep(session_id, tokens, context))


def exported(session_id: str, tokens: list[int]) -> bytes:
    """Return an exported session in safetensors layout: length of the header, header, tensors."""
    header = json.dumps({"__metadata__": {"session_id": session_id}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(tokens)


@asynccontextmanager
async def serving(servicer: ScriptedServer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    v1.add_InferenceServiceServicer_to_server(servicer, server)
    v1.add_SessionServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield address
    await server.stop(None)


@pytest.fixture
def servicer() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
async def address(servicer: ScriptedServer) -> AsyncIterator[str]:
    async with serving(servicer) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with Client(address, caller="me") as client:
        yield client


# ---- the calls of SessionService


async def test_session_fields_are_those_of_the_server(client: Client) -> None:
    session = await client.create_session("abc", session_id="b", model="bytes", seed=7)
    assert (session.session_id, session.model, session.digest) == ("b", "bytes", "sha256:0")
    assert (session.position, session.seed, session.running) == (3, 7, True)
    assert (session.create_time, session.use_time) == (MADE, USED)
    assert await client.get_session("b") == session
    content = await client.session_tokens("b")
    assert (content.session, content.token_ids, content.text) == (session, (97, 98, 99), "abc")
    assert (await client.create_session([1, 2])).position == 2
    assert (await client.create_session()).position == 0


async def test_omitted_arguments_are_not_sent(client: Client, servicer: ScriptedServer) -> None:
    session = await client.create_session()
    await client.fork_session(session.session_id, new_session_id="other")
    created, forked = servicer.requests()
    assert created == v1.CreateSessionRequest(session_id=session.session_id)
    assert forked == v1.ForkSessionRequest(session_id=session.session_id, new_session_id="other")
    await client.create_session("", seed=0)
    assert servicer.requests()[-1].WhichOneof("prompt") == "text"
    assert servicer.requests()[-1].HasField("seed")


async def test_fork_and_rewind(client: Client) -> None:
    await client.create_session("abcdef", session_id="one")
    fork = await client.fork_session("one", new_session_id="two", position=4, seed=1)
    assert (fork.session_id, fork.position) == ("two", 4)
    assert (await client.rewind_session("two", 1)).position == 1
    assert (await client.rewind_session("two", 0)).position == 0
    content = await client.export_session("one")
    await client.delete_session("one")
    assert (await client.import_session(content)).session_id == "one"
    assert (await client.import_session(content, session_id="three")).position == 6


async def test_list_sessions_reads_all_pages(client: Client, servicer: ScriptedServer) -> None:
    assert [session async for session in client.list_sessions()] == []
    for session_id in "edcba":
        await client.create_session(session_id=session_id)
    servicer.seen.clear()
    assert [session.session_id async for session in client.list_sessions()] == list("abcde")
    assert [request.page_token for request in servicer.requests()] == ["", "b", "d"]


async def test_every_call_sends_its_session_as_a_routing_header(client: Client, servicer: ScriptedServer) -> None:
    made = (await client.create_session("ab")).session_id
    await client.get_session(made)
    await client.session_tokens(made)
    forked = (await client.fork_session(made)).session_id
    await client.rewind_session(made, 1)
    content = await client.export_session(made)
    await client.delete_session(made)
    await client.import_session(content)
    await client.import_session(content, session_id="named")
    await client.generate(session=made).text()
    await client.classify("a", session=made)
    _ = [prediction async for prediction in client.stream_classify(["a"], session=made)]
    _ = [session async for session in client.list_sessions()]
    await client.generate("a").text()
    actual = [(name, metadata.get("elman-session")) for name, _, metadata in servicer.seen]
    assert actual == [
        ("CreateSession", made),
        ("GetSession", made),
        ("GetSession", made),
        ("ForkSession", forked),
        ("RewindSession", made),
        ("ExportSession", made),
        ("DeleteSession", made),
        ("ImportSession", made),
        ("ImportSession", "named"),
        ("Generate", made),
        ("Classify", made),
        ("StreamClassify", made),
        ("StreamClassify", made),
        ("ListSessions", None),  # two pages
        ("ListSessions", None),
        ("Generate", None),
    ]
    assert {metadata.get("elman-caller") for _, _, metadata in servicer.seen} == {"me"}
    assert made != forked
    assert all(re.fullmatch(r"[0-9a-f]{16}", session_id) for session_id in (made, forked))


@pytest.mark.parametrize("session_id", ["é", "a\nb", "x" * 20_000, ""])
async def test_invalid_session_ids_are_sent_to_the_server(
    client: Client, servicer: ScriptedServer, session_id: str
) -> None:
    with pytest.raises(SessionNotFoundError):
        await client.get_session(session_id)
    assert servicer.requests()[0].session_id == session_id


async def test_invalid_session_exports_are_sent_to_the_server(client: Client, servicer: ScriptedServer) -> None:
    for content in (b"", b"nonsense" * 10, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}"):
        with pytest.raises(ElmanError):  # The scripted server does not validate; the test checks that it was called.
            await client.import_session(content)
        assert servicer.requests()[-1].content == content


async def test_caller_must_be_printable_and_is_optional(address: str, servicer: ScriptedServer) -> None:
    for caller in ("é", "a\nb"):
        with pytest.raises(ValueError, match="must be printable ASCII"):
            Client(address, caller=caller)
    async with Client(address) as client:
        await client.create_session()
    assert "elman-caller" not in servicer.seen[0][2]


async def test_values_that_the_protocol_cannot_express_are_invalid_requests(client: Client) -> None:
    calls = [
        lambda: client.create_session(seed=10**20),
        lambda: client.rewind_session("a", 2**63),
        lambda: client.fork_session("a", position=2**63),
        lambda: client.get_session("caf\udce9"),
        lambda: client.import_session("text"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match="cannot be expressed"):
            await call()


# ---- errors


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        ("NOT_FOUND", "SESSION_NOT_FOUND", SessionNotFoundError),
        ("NOT_FOUND", "MODEL_NOT_FOUND", ModelNotFoundError),
        ("ALREADY_EXISTS", "SESSION_EXISTS", SessionExistsError),
        ("FAILED_PRECONDITION", "POSITION_MISMATCH", SessionConflictError),
        ("FAILED_PRECONDITION", "SESSION_BUSY", SessionConflictError),
        ("FAILED_PRECONDITION", "REQUEST_MISMATCH", InvalidRequestError),
        ("FAILED_PRECONDITION", "BUNDLE_MISMATCH", InvalidRequestError),
        ("FAILED_PRECONDITION", "SOMETHING_NEW", InvalidRequestError),
        ("DATA_LOSS", "SESSION_DAMAGED", ServerError),
        ("RESOURCE_EXHAUSTED", "SESSION_LIMIT", OverloadedError),
        ("RESOURCE_EXHAUSTED", "STORE_FULL", OverloadedError),
        ("UNAVAILABLE", "STORE_UNAVAILABLE", UnavailableError),
        ("UNAVAILABLE", "SESSION_ELSEWHERE", UnavailableError),
        ("UNAVAILABLE", "SESSION_MOVED", UnavailableError),
    ],
)
async def test_exceptions_are_chosen_by_reason(
    client: Client, servicer: ScriptedServer, code: str, reason: str, expected: type[ElmanError]
) -> None:
    servicer.breaks = [0]
    servicer.failure = lambda context: fail(context, code, reason, position="12")
    with pytest.raises(ElmanError) as caught:
        await client.generate(session="a").text()
    assert type(caught.value) is expected
    assert (caught.value.code.name, caught.value.reason) == (code, reason)
    assert not isinstance(caught.value, SessionConflictError) or caught.value.position == 12


# ---- generation and labels in a session


async def test_generation_in_a_session(client: Client, servicer: ScriptedServer) -> None:
    stream = client.generate(session="s", position=3, request_id="first", received_token_count=2)
    assert (stream.session_position_before, stream.session_position) == (None, None)
    async for _ in stream:
        assert (stream.session_position_before, stream.session_position) == (3, None)
    assert (stream.session_position_before, stream.session_position) == (3, 3 + len(TOKENS))
    assert (stream.request_id, stream.received_token_count) == ("first", len(TOKENS))
    request = servicer.requests()[0]
    assert request.session == v1.SessionCall(session_id="s", position=3, request_id="first")
    assert request.received_token_count == 2


async def test_without_patience_no_request_id_is_sent_and_nothing_is_retried(
    client: Client, servicer: ScriptedServer
) -> None:
    servicer.breaks = [2]
    stream = client.generate(session="s")
    with pytest.raises(UnavailableError):
        await stream.text()
    assert stream.received_token_count == 2
    servicer.breaks = [0]
    with pytest.raises(UnavailableError):
        await client.classify("a", session="s")
    assert [request.session for request in servicer.requests()] == [v1.SessionCall(session_id="s")] * 2


@pytest.mark.parametrize("changes", [{"position": 0}, {"request_id": "x"}, {"patience": 1}])
async def test_session_options_require_a_session(client: Client, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="need a session"):
        client.generate("a", **changes)
    with pytest.raises(InvalidRequestError, match="need a session"):
        await client.classify("a", **changes)


async def test_streamed_classification_in_a_session(client: Client, servicer: ScriptedServer) -> None:
    actual = [prediction async for prediction in client.stream_classify(["ab", "c"], session="s", position=5)]
    assert [prediction.session_position for prediction in actual] == [7, 8]
    config = servicer.requests()[0].config
    assert config.session == v1.SessionCall(session_id="s", position=5)
    with pytest.raises(InvalidRequestError, match="need a session"):
        await anext(client.stream_classify(["a"], position=5))


# ---- resuming after an interruption


@pytest.mark.parametrize("count", range(len(TOKENS) + 1))
async def test_interrupted_generation_resumes(client: Client, servicer: ScriptedServer, count: int) -> None:
    servicer.breaks = [count]
    stream = client.generate("x", session="s", position=3, seed=5, patience=10)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == STORY
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == TOKENS
    assert (stream.finish_reason, stream.session_position) == (FinishReason.MAX_TOKENS, 3 + len(TOKENS))
    first, second = servicer.requests()
    assert re.fullmatch(r"[0-9a-f]{16}", first.session.request_id)
    assert stream.request_id == first.session.request_id
    assert (first.received_token_count, second.received_token_count) == (0, count)
    second.received_token_count = 0
    assert first == second
    assert [metadata["elman-session"] for _, _, metadata in servicer.seen] == ["s", "s"]


async def test_retry_keeps_the_request_id_and_the_received_tokens(client: Client, servicer: ScriptedServer) -> None:
    servicer.breaks = [3, 0, 1]
    servicer.failure = lambda context: fail(context, "UNAVAILABLE")  # an error of the transport
    stream = client.generate(session="s", request_id="mine", received_token_count=2, patience=10)
    assert await stream.text() == STORY.removeprefix(text_of(2))
    assert [request.session.request_id for request in servicer.requests()] == ["mine"] * 4
    assert [request.received_token_count for request in servicer.requests()] == [2, 5, 5, 6]


async def test_retries_end_after_the_patience(client: Client, servicer: ScriptedServer) -> None:
    servicer.breaks = [2] + [0] * 100
    started = time.monotonic()
    stream = client.generate(session="s", patience=0.6)
    with pytest.raises(UnavailableError) as caught:
        await stream.text()
    assert caught.value.reason == "SERVER_DRAINING"
    assert 0.6 <= time.monotonic() - started < 3
    assert 4 <= len(servicer.seen) <= 7  # with growing delays: 0.05, 0.1, 0.2 and the rest
    assert stream.received_token_count == 2


async def test_every_token_restarts_the_patience(client: Client, servicer: ScriptedServer) -> None:
    servicer.breaks = [1, 0, 0] * 5
    started = time.monotonic()
    assert await client.generate(session="s", patience=0.7).text() == STORY
    assert time.monotonic() - started > 1.4


async def test_slow_consumer_does_not_consume_the_patience(client: Client, servicer: ScriptedServer) -> None:
    servicer.breaks = [2, 0]
    text = ""
    async for chunk in client.generate(session="s", patience=0.3):
        text += chunk.text
        await asyncio.sleep(0.4 if chunk.token_ids == (TOKENS[1],) else 0)
    assert text == STORY


async def test_timeout_covers_all_attempts(client: Client, servicer: ScriptedServer) -> None:
    servicer.breaks = [1] + [0] * 100
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        await client.generate(session="s", patience=60, timeout=0.5).text()
    with pytest.raises(DeadlineExceededError):
        await client.classify("a", session="s", patience=60, timeout=0.5)
    async with Client("127.0.0.1:1", timeout=2.0) as nowhere:
        with pytest.raises(DeadlineExceededError, match="cannot reach"):
            await nowhere.classify("a", session="s", patience=60)
    assert 2.9 < time.monotonic() - started < 8


async def test_error_details_that_do_not_match_the_status_are_ignored(client: Client, servicer: ScriptedServer) -> None:
    async def fail_late(context: Any) -> None:
        """The deadline expires while the error of the server arrives."""
        status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="draining")
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "late")

    servicer.breaks, servicer.failure = [0], fail_late
    with pytest.raises(DeadlineExceededError, match="late"):
        await client.classify("a")


@pytest.mark.parametrize("name", ["generate", "classify"])
async def test_timeout_expires_during_retries(client: Client, servicer: ScriptedServer, name: str) -> None:
    servicer.breaks = [0, 0, 0, 0]  # takes 0.75 s; the fifth attempt is never answered completely
    servicer.gate.clear()
    options: dict[str, Any] = {"session": "s", "patience": 60, "timeout": 1.5}
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: client.generate(**options).text(),
        "classify": lambda: client.classify("a", **options),
    }
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        await calls[name]()
    assert time.monotonic() - started < 2
    assert len(servicer.seen) == 5


@pytest.mark.parametrize("reason", ["SESSION_BUSY", "POSITION_MISMATCH", "REQUEST_MISMATCH"])
async def test_permanent_errors_are_raised_immediately(client: Client, servicer: ScriptedServer, reason: str) -> None:
    servicer.breaks = [2]
    servicer.failure = lambda context: fail(context, "FAILED_PRECONDITION", reason, position="5")
    with pytest.raises(ElmanError) as caught:
        await client.generate(session="s", patience=10).text()
    assert caught.value.reason == reason
    assert len(servicer.seen) == 1


async def test_cancelling_between_attempts_ends_iteration_without_an_error(
    client: Client, servicer: ScriptedServer
) -> None:
    servicer.breaks = [2] + [0] * 100
    stream = client.generate(session="s", patience=60)
    text = asyncio.create_task(stream.text())
    while len(servicer.seen) < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # during the delay after the fifth attempt, which takes 0.8 s
    stream.cancel()
    async with asyncio.timeout(0.3):
        assert await text == text_of(2)
    assert stream.finish_reason is None
    assert len(servicer.seen) == 5


async def test_task_cancelled_between_attempts_stays_cancelled(client: Client, servicer: ScriptedServer) -> None:
    servicer.breaks = [0] * 100
    task = asyncio.create_task(client.generate(session="s", patience=60).text())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_lost_classification_is_requested_again(client: Client, servicer: ScriptedServer) -> None:
    servicer.breaks = [0, 0]
    prediction = await client.classify("a", session="s", position=8, patience=10)
    assert (prediction.step_count, prediction.session_position) == (1, 9)
    first, *others = servicer.requests()
    assert len(others) == 2
    assert re.fullmatch(r"[0-9a-f]{16}", first.session.request_id)
    assert all(other == first for other in others)
    await client.classify("a", session="s", request_id="mine", patience=10)
    assert servicer.requests()[-1].session.request_id == "mine"


class Wire:
    """A proxy whose connections can be cut: it forwards its port to another one."""

    def __init__(self, address: str) -> None:
        self._target = int(address.rpartition(":")[2])
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._pumping: set[asyncio.Task[None]] = set()
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.gather(*self._pumping, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, there[1]]
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._pumping.add(task)
            task.add_done_callback(self._pumping.discard)

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while content := await source.read(65536):
            sink.write(content)
            await sink.drain()


async def test_lost_connection_is_reestablished(address: str, servicer: ScriptedServer) -> None:
    wire = Wire(address)
    await wire.mend()
    async with Client(f"127.0.0.1:{wire.port}") as client:
        stream = client.generate(session="s", patience=10)
        chunks = aiter(stream)
        servicer.gate.clear()
        text = (await anext(chunks)).text
        await wire.cut()
        servicer.gate.set()
        reading = asyncio.create_task(asyncio.wait_for(stream_rest(chunks), 10))
        await asyncio.sleep(1)
        assert not reading.done()
        await wire.mend()
        assert text + await reading == STORY
        await wire.cut()
        with pytest.raises(UnavailableError):
            await client.classify("a", session="s")
    assert [request.received_token_count for request in servicer.requests()] == [0, 1]


async def stream_rest(chunks: AsyncIterator[Any]) -> str:
    return "".join([chunk.text async for chunk in chunks])


# ---- the command line


async def run(address: str, *arguments: object) -> Any:
    return await asyncio.to_thread(elman, *arguments, "--server", address)


async def output_of(address: str, *arguments: object) -> str:
    """Run a command that succeeds and return its output."""
    actual = await run(address, *arguments)
    assert (actual.returncode, actual.stderr) == (0, "")
    return str(actual.stdout)


async def test_commands_that_create_a_session_print_only_its_id(
    address: str, servicer: ScriptedServer, tmp_path: Path
) -> None:
    made = await output_of(address, "session", "create", "Once upon")
    assert re.fullmatch(r"[0-9a-f]{16}\n", made)
    made = made.strip()
    assert servicer.sessions == {made: list(b"Once upon")}
    assert await output_of(address, "session", "create", "--id", "b", "--model", "bytes", "--seed", "5") == "b\n"
    assert servicer.requests()[-1] == v1.CreateSessionRequest(session_id="b", model="bytes", seed=5)
    assert await output_of(address, "session", "fork", made, "--at", "4", "--id", "c", "--seed", "6") == "c\n"
    forked = v1.ForkSessionRequest(session_id=made, new_session_id="c", position=4, seed=6)
    assert servicer.requests()[-1] == forked
    assert re.fullmatch(r"[0-9a-f]{16}\n", await output_of(address, "session", "fork", made))
    assert await output_of(address, "session", "rewind", "c", "0") == ""
    assert servicer.sessions["c"] == []
    file = tmp_path / "session"
    assert await output_of(address, "session", "export", made, file) == ""
    assert await output_of(address, "session", "import", file, "--id", "d") == "d\n"
    assert await output_of(address, "session", "delete", made, "b", "c") == ""
    assert await output_of(address, "session", "import", file) == f"{made}\n"
    assert servicer.sessions[made] == servicer.sessions["d"] == list(b"Once upon")
    assert "b" not in servicer.sessions
    assert "c" not in servicer.sessions


async def test_session_list_and_show_commands(address: str, servicer: ScriptedServer) -> None:
    name = "long-" + "x" * 59
    servicer.sessions = {"a": list(STORY.encode()), "b": [97, 10, 98], name: []}
    rows = [line.split() for line in (await output_of(address, "session", "list")).splitlines()]
    assert rows[0] == ["id", "model", "position", "seed", "created", "used", "running"]
    assert [(row[0], row[1], row[2], row[3], row[-1]) for row in rows[1:]] == [
        ("a", "bytes", str(len(TOKENS)), "7", "no"),
        ("b", "bytes", "3", "7", "yes"),
        (name, "bytes", "0", "7", "no"),
    ]
    assert datetime.fromisoformat(" ".join(rows[1][4:6])) == MADE
    facts, _, text = (await output_of(address, "session", "show", "b")).partition("\n\n")
    assert text == "a\nb\n"
    actual = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert datetime.fromisoformat(actual.pop("created")) == MADE
    assert datetime.fromisoformat(actual.pop("used")) == USED.replace(microsecond=0)
    assert actual == {
        "id": "b",
        "model": "bytes",
        "digest": "sha256:0",
        "position": "3",
        "seed": "7",
        "running": "yes",
    }
    assert (await output_of(address, "session", "show", "b", "--tokens")).endswith("\n\n97 10 98\n")


async def test_generate_command_in_a_session(address: str, servicer: ScriptedServer) -> None:
    assert await output_of(address, "generate", "--session", "s") == STORY
    assert servicer.requests()[0].session == v1.SessionCall(session_id="s")
    assert servicer.seen[0][2]["elman-session"] == "s"


async def test_session_export_overwrites_only_with_force_and_leaves_no_partial_files(
    address: str, servicer: ScriptedServer, tmp_path: Path
) -> None:
    servicer.sessions = {"a": [1, 2, 3]}
    file = tmp_path / "file"
    file.write_text("precious")
    check_failure(await run(address, "session", "export", "a", file), "file: exists already; --force overwrites it")
    check_failure(await run(address, "session", "export", "nope", file, "--force"), "SESSION_NOT_FOUND")
    assert file.read_text() == "precious"
    await output_of(address, "session", "export", "a", file, "--force")
    assert file.read_bytes() == exported("a", [1, 2, 3])
    folder = tmp_path / "folder"
    folder.mkdir()
    check_failure(await run(address, "session", "export", "a", folder, "--force"), "Is a directory")
    check_failure(await run(address, "session", "export", "a", tmp_path / "no" / "file"), "No such file or directory")
    assert names_in(tmp_path) == ["file", "folder"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_errors_are_reported_in_one_line(address: str, servicer: ScriptedServer, tmp_path: Path) -> None:
    servicer.sessions = {"a": []}
    mistakes = [
        (["show", "nope"], "error: this is SESSION_NOT_FOUND"),
        (["create", "--id", "a"], "error: this is SESSION_EXISTS"),
        (["create", "--seed", 10**20], "error: the request cannot be expressed"),
        (["import", tmp_path / "nope"], "No such file or directory"),
        (["delete", "nope", "a"], "error: this is SESSION_NOT_FOUND"),
    ]
    for arguments, error_message in mistakes:
        actual = await run(address, "session", *arguments)
        check_failure(actual, error_message)
        assert len(actual.stderr.splitlines()) == 1
    assert "a" in servicer.sessions
    check_failure(await run("127.0.0.1:1", "session", "list"), "is a server running there?")


def test_every_session_option_has_help_and_shows_its_default() -> None:
    from typer.main import get_command

    from elman.cli.application import app

    group = get_command(app).commands["session"]  # type: ignore[attr-defined]
    assert group.help
    assert set(group.commands) == {"list", "show", "create", "fork", "rewind", "export", "import", "delete"}
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.name == "help":
                continue
            assert parameter.help, (name, parameter.name)
            needed = parameter.required or getattr(parameter, "is_flag", False) or parameter.name == "prompt"
            assert needed or parameter.show_default, (name, parameter.name)
