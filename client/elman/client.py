"""The client: asynchronous calls with typed results.

async with Client() as client:
    async for chunk in client.generate("def ", max_tokens=200, temperature=0.7):
        print(chunk.text, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import grpc

from elman.analysis_calls import AnalysisCalls
from elman.decoding import Decoding, set_duration
from elman.errors import refused_arguments, rpc_errors
from elman.generation_results import Choice, ChoiceScore, Continuation, ContinuationCollector
from elman.generation_stream import GenerationStream
from elman.inputs import Input, set_input, set_source, set_steps
from elman.label_results import Prediction, prediction_of
from elman.multiplexing import MultiplexedCalls
from elman.session_calls import SessionCalls
from elman.session_retries import RetryBudget, position_of, session_call
from elman.unary_calls import UnaryCalls, generate_request
from elman_protos import v1

if TYPE_CHECKING:
    from elman.inputs import Numbers


@dataclass(frozen=True)
class Model:
    """A model of a server.

    Attributes:
        name: the name by which requests select it.
        digest: the digest of its bundle; equal digests give equal answers.
        provider: where it runs, "cpu" or "cuda".
        slot_count: the largest number of sequences that run at the same time.
        running_count: the number of running sequences.
        waiting_count: the number of waiting requests.
        waiting_limit: the largest number of waiting requests.
        prefix_lookup_count: the number of prompts and inputs that were looked up in the prefix cache.
        prefix_hit_count: the number of them whose beginning was found.
        saved_step_count: the number of steps that this has saved.
        spec: the manifest of its bundle.
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


class Client(SessionCalls, AnalysisCalls, UnaryCalls):
    """A client of one server.

    Args:
        address: host and port.
        timeout: the time limit in seconds of calls that set none; None for no limit.
        caller: identifies the owner of sessions to the server; by default the address that the calls come from.

    Raises:
        ValueError: `caller` is not printable ASCII, or `timeout` is NaN.
    """

    @property
    def _stub(self) -> v1.InferenceServiceAsyncStub:
        return self._channel().inference

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """List the models of the server, by name.

        Args:
            timeout: the time limit in seconds.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        response = await self._call(self._stub.ListModels, v1.ListModelsRequest(), timeout)
        return [_model(model) for model in response.models]

    async def get_model(self, name: str, *, timeout: float | None = None) -> Model:
        """Get one model.

        Args:
            name: the model's name.
            timeout: the time limit in seconds.

        Raises:
            ModelNotFoundError: the server has no model with this name.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        with refused_arguments():
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
        """Continue a prompt or a session, as a stream. The call starts now; its errors are raised by iterating.

        Args:
            prompt: text or token ids.
            source: what the model's encoder reads, if it has one: text, token ids, or the numbers of every position.
            model: the model's name; optional if the server has only one that generates.
            interval: the seconds for which tokens are coalesced into a chunk, except the first; 0 for chunks as soon as
                possible. By default the server decides, depending on its load.
            single_tokens: send a chunk for every token; excludes `interval`.
            bypass_prefix_cache: read the whole prompt, even if the state after its beginning is cached.
            session: the id of the session to continue; the prompt follows its tokens and may be empty.
            position: the expected position of the session; at any other, the call fails with `SessionConflictError`. By
                default any.
            request_id: identifies the call within its session: a repeated call with the same id is not run again, but
                its result is sent again. By default none, or a random one with patience.
            received_token_count: the number of the call's tokens that the caller already has; it resumes after them.
            patience: for a session, the seconds for which a call is retried that breaks because the server or the
                connection is lost; its chunks continue without a gap. Default 0, no retries.
            log_probabilities: report the probability of each token, and this number of most probable tokens at its
                position; by default no report.
            timeout: the time limit for the whole generation in seconds, with retries.
            **decoding: how tokens are chosen and when the generation ends; see `Decoding`.

        Raises:
            InvalidRequestError: the protocol cannot express an argument.
        """
        with refused_arguments():
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
                    raise ValueError("single_tokens and interval exclude each other")
                set_duration(request.interval, interval, "interval")
        return self._generate(request, RetryBudget(patience, self._seconds(timeout)))

    def _generate(self, request: v1.GenerateRequest, budget: RetryBudget) -> GenerationStream:
        metadata = self._metadata(request.session.session_id)

        def start(received: int) -> grpc.aio.UnaryStreamCall[Any, v1.GenerateResponse]:
            request.received_token_count = received
            return self._stub.Generate(request, timeout=budget.timeout, metadata=metadata)

        return GenerationStream(
            start,
            self.address,
            budget,
            request_id=request.session.request_id,
            received_token_count=request.received_token_count,
        )

    async def _generate_all(self, request: v1.GenerateRequest, timeout: float | None) -> list[Continuation]:
        collector = ContinuationCollector()
        with rpc_errors(self.address):
            call = self._stub.Generate(request, timeout=self._seconds(timeout), metadata=self._metadata())
            async for response in call:
                collector.add(response)
        return collector.continuations()

    async def _classify(self, request: v1.ClassifyRequest, timeout: float | None) -> v1.ClassifyResponse:
        return await self._call(self._stub.Classify, request, timeout, request.session.session_id)

    def many(self) -> MultiplexedCalls:
        """Share one call between many short requests.

        async with client.many() as many:
            predictions = await asyncio.gather(*(many.classify(line) for line in lines))
        """
        return MultiplexedCalls(self._stub, self.address, self._seconds, self._metadata())

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
        """Find the most probable of several continuations, such as the answers to a question.

        Args:
            choices: 2 to 1024 texts or lists of token ids, of one or more tokens each.
            prompt: what precedes every choice, text or token ids; it is read once.
            source: what the model's encoder reads, if it has one; it is read once.
            model: the model's name; optional if the server has only one that generates.
            open_ended: leave out the end token, which is otherwise scored with each choice if the model has one.
            bypass_prefix_cache: read the whole prompt, even if the state after its beginning is cached.
            timeout: the time limit in seconds.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        with refused_arguments():
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
        return Choice(response.choice_index, scores, response.source_unknown_count, response.unknown_token_count)

    async def stream_classify(
        self,
        pieces: AsyncIterable[Input | Numbers] | Iterable[Input | Numbers],
        *,
        model: str = "",
        session: str = "",
        position: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Prediction]:
        """Label an input that arrives in pieces.

        Each piece is sent when the one before it has been answered.

        Args:
            pieces: text, token ids, or the numbers of steps; see `classify`.
            model: the model's name; optional if the server has only one with labels.
            session: the id of the session that the pieces continue; it holds a piece once that is answered.
            position: the expected position of the session before the first piece; see `generate`.
            timeout: the time limit for the whole stream in seconds.

        Yields:
            One prediction for each piece, in their order.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        with refused_arguments():
            config = v1.StreamConfig(model=model, session=session_call(session, position, "", 0))
        call = self._stub.StreamClassify(timeout=self._seconds(timeout), metadata=self._metadata(session))

        # One request at a time: grpc.aio loses the reason why a server ends a stream if a write is in progress.
        async def exchange(request: v1.StreamClassifyRequest) -> v1.StreamClassifyResponse:
            # grpc.aio refuses to write to a call that has ended; reading then reports why it has.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(request)
            response = await call.read()
            assert isinstance(response, v1.StreamClassifyResponse)  # Otherwise read() has raised the status.
            return response

        try:
            with rpc_errors(self.address):
                await exchange(v1.StreamClassifyRequest(config=config))
                async for piece in _asynchronous(pieces):
                    request = v1.StreamClassifyRequest(piece=v1.Piece())
                    with refused_arguments():
                        set_steps(request.piece, piece)
                    result = (await exchange(request)).result
                    yield prediction_of(result.prediction, position_of(result), result.unknown_token_count)
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
