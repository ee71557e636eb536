"""The client: asynchronous calls with typed results.

async with Client() as client:
    async for chunk in client.generate("def ", max_tokens=200, temperature=0.7):
        print(chunk.text, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import grpc

from elman.analysis import AnalysisCalls
from elman.decoding import (
    Continuation,
    Decoding,
    FinishReason,
    Gathering,
    TokenReport,
    Usage,
    reports_of,
    set_duration,
    usage_of,
)
from elman.errors import ElmanError, expressible, rpc_errors
from elman.inputs import Input, set_input, set_source, set_steps
from elman.many import ManyCalls
from elman.sessions import Patience, SessionCalls, session_call
from elman.whole import Prediction, WholeCalls, generate_request, position_of, prediction_of
from elman_protos import v1

if TYPE_CHECKING:
    from elman.inputs import Numbers


@dataclass(frozen=True)
class Model:
    """A model as a server holds it.

    Attributes:
        name: by which requests choose it.
        digest: of its bundle; equal digests answer equally.
        provider: where it runs, "cpu" or "cuda".
        slot_count: how many sequences run at once at most.
        running_count: how many run now.
        waiting_count: how many wait now.
        waiting_limit: how many may wait.
        prefix_lookup_count: how many prompts and inputs were looked up among those that have been read.
        prefix_hit_count: how many of them began like one.
        saved_step_count: how many steps that has saved.
        spec: its manifest.
    """

    name: str
    digest: str
    provider: str
    slot_count: int
    running_count: int
    waiting_count: int
    waiting_limit: int
    prefix_lookup_count: int
    prefix_hit_count: int
    saved_step_count: int
    spec: v1.ModelSpec


@dataclass(frozen=True)
class Chunk:
    """Newly generated tokens.

    Attributes:
        text: whole characters only, so it may lag behind the ids.
        token_ids: their ids.
        reports: how probable each of them was, if that was asked.
    """

    text: str
    token_ids: tuple[int, ...]
    reports: tuple[TokenReport, ...] = ()


@dataclass(frozen=True)
class ChoiceScore:
    """How probable one of several continuations is.

    Attributes:
        log_likelihood: the sum of the log-probabilities of its tokens, in nats.
        token_count: how many tokens were scored, the end token among them.
        probability: its share of the probability that all choices have together; 0 where the model excludes all.
        unknown_token_count: how many of its tokens stand for what the vocabulary does not have.
    """

    log_likelihood: float
    token_count: int
    probability: float
    unknown_token_count: int


@dataclass(frozen=True)
class Choice:
    """Which of several continuations is the most probable.

    Attributes:
        index: its place among them.
        scores: of all of them, in their order.
        source_unknown_count: how many positions of the source stand for what the encoder's vocabulary does not have.
    """

    index: int
    scores: tuple[ChoiceScore, ...]
    source_unknown_count: int


class GenerationStream:
    """A generation under way: iterate over it for its chunks.

    Attributes:
        model: the name of the model that answers; "" before the first chunk.
        digest: of its bundle.
        seed: in use; with it the same request gives the same text again.
        prompt_token_count: the number of prompt tokens.
        unknown_token_count: how many of them the vocabulary does not have.
        source_unknown_count: how many positions of the source the encoder's vocabulary does not have.
        cached_token_count: how many of them had not to be read, because the state behind them was known.
        finish_reason: why it ended; None before it has.
        stop_sequence: the stop sequence that ended it, or "".
        usage: what it has used; None before its end, and where it was told from a session's record.
        generated_token_count: how many tokens it has in the end.
        session_position_before: the session's position before the call; None before the first chunk.
        session_position: the session's position after the call; None before its end.
        request_id: names the call in its session, for whoever repeats it; "" where it has no name.
        received_token_count: how many of its tokens have come, those that the caller had already included.
    """

    def __init__(
        self,
        begin: Callable[[int], grpc.aio.UnaryStreamCall[Any, v1.GenerateResponse]],
        address: str,
        patience: Patience,
        *,
        request_id: str = "",
        received_token_count: int = 0,
    ) -> None:
        """Begin it.

        Args:
            begin: makes the call, behind so many tokens.
            address: of the server, for errors.
            patience: for how long what is broken off is begun again.
            request_id: as above.
            received_token_count: how many tokens the caller has already.
        """
        self._begin = begin
        self._address = address
        self._patience = patience
        self._cancelled = asyncio.Event()
        self.model = ""
        self.digest = ""
        self.seed = 0
        self.prompt_token_count = 0
        self.unknown_token_count = 0
        self.source_unknown_count = 0
        self.cached_token_count = 0
        self.finish_reason: FinishReason | None = None
        self.stop_sequence = ""
        self.usage: Usage | None = None
        self.generated_token_count = 0
        self.session_position_before: int | None = None
        self.session_position: int | None = None
        self.request_id = request_id
        self.received_token_count = received_token_count
        self._call = begin(received_token_count)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            while (response := await self._next()) is not None:
                self._take(response)
                if response.HasField("chunk"):
                    chunk = response.chunk
                    yield Chunk(chunk.text, tuple(chunk.token_ids), reports_of(chunk))
        except asyncio.CancelledError:
            # grpc.aio raises this where the call was cancelled, too; it is an end then, and no cancelled task.
            task = asyncio.current_task()
            if not self._cancelled.is_set() or (task is not None and task.cancelling()):
                raise
        finally:
            self.cancel()

    async def _next(self) -> v1.GenerateResponse | None:
        """The next response; None behind the last one. Where the call is broken off it is begun again."""
        while True:
            try:
                with rpc_errors(self._address):
                    return await anext(aiter(self._call), None)
            except ElmanError as error:
                await self._wait(self._patience.pause(error))
            if self._cancelled.is_set():
                return None
            self._call = self._begin(self.received_token_count)

    async def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until the generation is cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._cancelled.wait()

    def _take(self, response: v1.GenerateResponse) -> None:
        if response.HasField("started"):
            started = response.started
            self.model, self.digest, self.seed = started.model, started.digest, started.seed
            self.prompt_token_count = started.prompt_token_count
            self.unknown_token_count = started.unknown_token_count
            self.source_unknown_count = started.source_unknown_count
            self.cached_token_count = started.cached_token_count
            self.session_position_before = position_of(started)
        if response.HasField("finished"):
            self.finish_reason = FinishReason(response.finished.finish_reason)
            self.stop_sequence = response.finished.stop_sequence
            self.usage = usage_of(response.finished)
            self.generated_token_count = response.finished.generated_token_count
            self.session_position = position_of(response.finished)
        if response.chunk.token_ids:
            self.received_token_count += len(response.chunk.token_ids)
            self._patience.renew()

    async def text(self) -> str:
        """The whole text, when it is there."""
        return "".join([chunk.text async for chunk in self])

    def cancel(self) -> None:
        """End the generation now: the loop over it ends, without an error and without a finish_reason. Harmless after
        its end. Leaving the loop does the same."""
        self._cancelled.set()
        self._call.cancel()


class Client(SessionCalls, AnalysisCalls, WholeCalls):
    """Calls one server. What it takes is said at `elman.connection.Connection`."""

    @cached_property
    def _stub(self) -> v1.InferenceServiceAsyncStub:
        return v1.InferenceServiceStub(self._channel)

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """All models of the server, by name."""
        response = await self._call(self._stub.ListModels, v1.ListModelsRequest(), timeout)
        return [_model(model) for model in response.models]

    async def get_model(self, name: str, *, timeout: float | None = None) -> Model:
        """One model.

        Raises:
            ModelNotFoundError: there is none of that name.
        """
        with expressible():
            request = v1.GetModelRequest(name=name)
        return _model((await self._call(self._stub.GetModel, request, timeout)).model)

    def generate(
        self,
        prompt: Input = "",
        *,
        source: Input | Numbers | None = None,
        model: str = "",
        interval: float | None = None,
        single_tokens: bool = False,
        bypass_prefix_cache: bool = False,
        session: str = "",
        position: int | None = None,
        request_id: str = "",
        received_token_count: int = 0,
        patience: float = 0.0,
        log_probabilities: int | None = None,
        timeout: float | None = None,
        **decoding: Unpack[Decoding],
    ) -> GenerationStream:
        """Continue a prompt, or a session. The call starts now; errors of the server are raised by iterating.

        Args:
            prompt: text, or token ids.
            source: what the model's encoder reads, where it has one: text, token ids, or the numbers of every position;
                such as a sentence to translate.
            model: its name; may be empty where the server holds one that generates.
            interval: seconds for which tokens gather to one chunk, the first one excepted; 0: chunks as soon as they
                are there; default as the server sees fit, which depends on its load.
            single_tokens: a chunk for every token; excludes `interval`.
            bypass_prefix_cache: read the whole prompt, though the state behind its beginning may be known.
            session: the id of the session to continue; the prompt follows what it holds and may be empty.
            position: where the session is expected to be; at another position nothing is generated
                (`SessionConflictError`). Default: wherever it is.
            request_id: names the call in its session: a call that comes again under its name is not run again, but
                sent again. Default: none, or a random one where there is patience.
            received_token_count: how many of the call's tokens are there already: it goes on behind them.
            patience: in a session, seconds for which a call that is broken off, because the server or the connection
                to it has gone, is repeated; its chunks then go on as if nothing had been. Default 0, not at all.
            log_probabilities: report how probable each token was, and so many of the most probable ones beside it;
                default: no report.
            timeout: seconds the whole generation may take, repetitions included.
            decoding: how tokens are chosen and when it ends; see `Decoding`.
        """
        with expressible():
            request = generate_request(prompt, source, model, decoding, log_probabilities)
            call = session_call(session, position, request_id, patience)
            if call is not None:
                request.session.CopyFrom(call)
            request.bypass_prefix_cache = bypass_prefix_cache
            request.received_token_count = received_token_count
            if single_tokens:
                request.single_tokens.SetInParent()
            if interval is not None:
                if single_tokens:
                    raise ValueError("single_tokens and an interval exclude each other")
                set_duration(request.interval, interval, "interval")
        return self._generate(request, Patience(patience, self._seconds(timeout)))

    def _generate(self, request: v1.GenerateRequest, patience: Patience) -> GenerationStream:
        metadata = self._metadata(request.session.session_id)

        def begin(received: int) -> grpc.aio.UnaryStreamCall[Any, v1.GenerateResponse]:
            request.received_token_count = received
            return self._stub.Generate(request, timeout=patience.timeout, metadata=metadata)

        return GenerationStream(
            begin,
            self.address,
            patience,
            request_id=request.session.request_id,
            received_token_count=request.received_token_count,
        )

    async def _whole(self, request: v1.GenerateRequest, timeout: float | None) -> list[Continuation]:
        gathering = Gathering()
        with rpc_errors(self.address):
            call = self._stub.Generate(request, timeout=self._seconds(timeout), metadata=self._metadata())
            async for response in call:
                gathering.take(response)
        return gathering.continuations()

    async def _labelled(self, request: v1.ClassifyRequest, timeout: float | None) -> v1.ClassifyResponse:
        return await self._call(self._stub.Classify, request, timeout, request.session.session_id)

    def many(self) -> ManyCalls:
        """Calls that go to the server together, for whoever has many short things to ask.

        async with client.many() as many:
            found = await asyncio.gather(*(many.classify(line) for line in lines))
        """
        return ManyCalls(self._stub, self.address, self._seconds, self._metadata())

    async def choose(
        self,
        choices: Iterable[Input],
        *,
        prompt: Input = "",
        source: Input | Numbers | None = None,
        model: str = "",
        open_ended: bool = False,
        bypass_prefix_cache: bool = False,
        timeout: float | None = None,
    ) -> Choice:
        """Which of several continuations is the most probable, such as the answers to a question.

        Args:
            choices: texts or token ids, 2 to 1024, of one token or more each.
            prompt: what goes before every choice, text or token ids; it is read once.
            source: what the model's encoder reads, where it has one; it is read once.
            model: its name; may be empty where the server holds one that generates.
            open_ended: leave out the end token, with which choices are scored where the model has one.
            bypass_prefix_cache: read the whole prompt, though the state behind its beginning may be known.
            timeout: seconds the call may take.
        """
        with expressible():
            request = v1.ChooseRequest(model=model, open_ended=open_ended, bypass_prefix_cache=bypass_prefix_cache)
            set_input(request, prompt)
            set_source(request, source)
            for choice in choices:
                set_input(request.choices.add(), choice)
        response = await self._call(self._stub.Choose, request, timeout)
        scores = tuple(
            ChoiceScore(score.log_likelihood, score.token_count, score.probability, score.unknown_token_count)
            for score in response.scores
        )
        return Choice(response.choice_index, scores, response.source_unknown_count)

    async def stream_classify(
        self,
        pieces: AsyncIterable[Input | Numbers] | Iterable[Input | Numbers],
        *,
        model: str = "",
        session: str = "",
        position: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Prediction]:
        """Label an input that arrives in pieces; one prediction for every piece, in order.

        A piece is sent as soon as it is there and the one before it has been answered: grpc.aio forgets why a server
        ended a stream if it is writing at that moment.

        Args:
            pieces: text or token ids, or the numbers of steps; see `classify`.
            model: its name; may be empty where the server holds one with labels.
            session: the id of the session that the pieces continue; it holds a piece when that is answered.
            position: where the session is expected to be before the first piece; see `generate`.
            timeout: seconds the whole stream may take.
        """
        with expressible():
            config = v1.StreamConfig(model=model, session=session_call(session, position, "", 0))
        call = self._stub.StreamClassify(timeout=self._seconds(timeout), metadata=self._metadata(session))

        async def exchange(request: v1.StreamClassifyRequest) -> v1.StreamClassifyResponse:
            # grpc.aio will not write to a call that has ended meanwhile; reading then tells why it has.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(request)
            response = await call.read()
            assert isinstance(response, v1.StreamClassifyResponse)  # Else read() has raised the status.
            return response

        try:
            with rpc_errors(self.address):
                await exchange(v1.StreamClassifyRequest(config=config))
                async for piece in _asynchronous(pieces):
                    request = v1.StreamClassifyRequest(piece=v1.Piece())
                    with expressible():
                        set_steps(request.piece, piece)
                    result = (await exchange(request)).result
                    yield prediction_of(result.prediction, position_of(result))
                await call.done_writing()
        finally:
            call.cancel()


async def _asynchronous(
    pieces: AsyncIterable[Input | Numbers] | Iterable[Input | Numbers],
) -> AsyncIterator[Input | Numbers]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece


def _model(model: v1.Model) -> Model:
    return Model(
        name=model.spec.name,
        digest=model.digest,
        provider=model.provider,
        slot_count=model.slot_count,
        running_count=model.running_count,
        waiting_count=model.waiting_count,
        waiting_limit=model.waiting_limit,
        prefix_lookup_count=model.prefix_cache.lookup_count,
        prefix_hit_count=model.prefix_cache.hit_count,
        saved_step_count=model.prefix_cache.saved_step_count,
        spec=model.spec,
    )
