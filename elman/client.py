"""The client: asynchronous calls with typed results.

async with Client() as client:
    async for chunk in client.generate("def ", max_tokens=200, temperature=0.7):
        print(chunk.text, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self

import grpc

from elman import v1
from elman.errors import InvalidRequestError, from_rpc_error

DEFAULT_ADDRESS = "127.0.0.1:50051"

Input = str | Sequence[int]


class FinishReason(Enum):
    """Why a generation ended."""

    MAX_TOKENS = v1.FINISH_REASON_MAX_TOKENS
    END_TOKEN = v1.FINISH_REASON_END_TOKEN


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
        spec: its manifest.
    """

    name: str
    digest: str
    provider: str
    slot_count: int
    running_count: int
    waiting_count: int
    waiting_limit: int
    spec: v1.ModelSpec


@dataclass(frozen=True)
class Chunk:
    """Newly generated tokens.

    Attributes:
        text: whole characters only, so it may lag behind the ids.
        token_ids: their ids.
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Label:
    """A label and how probable the model holds it."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The labels of an input.

    Attributes:
        labels: a classifier's, all of them, the most probable first; empty for a tagger.
        steps: a tagger's, one for every step; empty for a classifier.
        step_count: the number of steps read; in a stream, all pieces together.
    """

    labels: tuple[Label, ...]
    steps: tuple[Label, ...]
    step_count: int


class GenerationStream:
    """A generation under way: iterate over it for its chunks.

    Attributes:
        model: the name of the model that answers; "" before the first chunk.
        digest: of its bundle.
        seed: in use; with it the same request gives the same text again.
        prompt_token_count: the number of prompt tokens.
        unknown_token_count: how many of them the vocabulary does not have.
        finish_reason: why it ended; None before it has.
        generated_token_count: how many tokens it has in the end.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, v1.GenerateResponse], address: str) -> None:
        self._call = call
        self._address = address
        self._cancelled = False
        self.model = ""
        self.digest = ""
        self.seed = 0
        self.prompt_token_count = 0
        self.unknown_token_count = 0
        self.finish_reason: FinishReason | None = None
        self.generated_token_count = 0

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            with _errors(self._address):
                async for response in self._call:
                    if response.HasField("started"):
                        started = response.started
                        self.model, self.digest, self.seed = started.model, started.digest, started.seed
                        self.prompt_token_count = started.prompt_token_count
                        self.unknown_token_count = started.unknown_token_count
                    if response.HasField("finished"):
                        self.finish_reason = FinishReason(response.finished.finish_reason)
                        self.generated_token_count = response.finished.generated_token_count
                    if response.HasField("chunk"):
                        yield Chunk(response.chunk.text, tuple(response.chunk.token_ids))
        except asyncio.CancelledError:
            # grpc.aio raises this where the call was cancelled, too; it is an end then, and no cancelled task.
            task = asyncio.current_task()
            if not self._cancelled or (task is not None and task.cancelling()):
                raise
        finally:
            self.cancel()

    async def text(self) -> str:
        """The whole text, when it is there."""
        return "".join([chunk.text async for chunk in self])

    def cancel(self) -> None:
        """End the generation now: the loop over it ends, without an error and without a finish_reason. Harmless after
        its end. Leaving the loop does the same."""
        self._cancelled = True
        self._call.cancel()


class Client:
    """Calls one server.

    Args:
        address: host and port.
        timeout: seconds one call may take, as far as a call does not say otherwise; None: as long as it takes.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float | None = None) -> None:
        self.address = address
        self._timeout = timeout
        # A tagger answers every step of a long input, which the default of 4 MiB would cut.
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self._stub = v1.InferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; calls under way are cancelled."""
        await self._channel.close()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """All models of the server, by name."""
        with _errors(self.address):
            response = await self._stub.ListModels(v1.ListModelsRequest(), timeout=self._seconds(timeout))
        return [_model(model) for model in response.models]

    async def get_model(self, name: str, *, timeout: float | None = None) -> Model:
        """One model.

        Raises:
            ModelNotFoundError: there is none of that name.
        """
        with _errors(self.address):
            response = await self._stub.GetModel(v1.GetModelRequest(name=name), timeout=self._seconds(timeout))
        return _model(response.model)

    def generate(
        self,
        prompt: Input = "",
        *,
        model: str = "",
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        interval: float | None = None,
        single_tokens: bool = False,
        timeout: float | None = None,
    ) -> GenerationStream:
        """Continue a prompt. The call starts now; errors of the server are raised by iterating.

        Args:
            prompt: text, or token ids.
            model: its name; may be empty where the server holds one that generates.
            max_tokens: the largest number of tokens to generate; default 256.
            temperature: below 1 sharper, above 1 flatter, 0 greedy; default 1.
            top_k: only so many of the most probable tokens are drawn from; default all.
            top_p: only the most probable tokens that together reach this probability are drawn from; default 1, all.
            seed: of the random numbers; default a random one.
            interval: seconds for which tokens gather to one chunk, the first one excepted; 0: chunks as soon as they
                are there; default as the server sees fit, which depends on its load.
            single_tokens: a chunk for every token; excludes `interval`.
            timeout: seconds the whole generation may take.
        """
        with _expressible():
            request = v1.GenerateRequest(model=model, max_tokens=max_tokens, seed=seed)
            _set_input(request, prompt)
            for field, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
                if value is not None:
                    setattr(request.sampling, field, value)
            if single_tokens:
                request.single_tokens.SetInParent()
            if interval is not None:
                if single_tokens:
                    raise ValueError("single_tokens and an interval exclude each other")
                request.interval.FromNanoseconds(round(interval * 1e9))
        return GenerationStream(self._stub.Generate(request, timeout=self._seconds(timeout)), self.address)

    async def classify(self, input: Input, *, model: str = "", timeout: float | None = None) -> Prediction:
        """Label a whole input.

        Args:
            input: text, or token ids; not empty.
            model: its name; may be empty where the server holds one with labels.
            timeout: seconds the call may take.
        """
        with _expressible():
            request = v1.ClassifyRequest(model=model)
            _set_input(request, input)
        with _errors(self.address):
            response = await self._stub.Classify(request, timeout=self._seconds(timeout))
        return _prediction(response.prediction)

    async def stream_classify(
        self, pieces: AsyncIterable[Input] | Iterable[Input], *, model: str = "", timeout: float | None = None
    ) -> AsyncIterator[Prediction]:
        """Label an input that arrives in pieces; one prediction for every piece, in order.

        A piece is sent as soon as it is there and the one before it has been answered: grpc.aio forgets why a server
        ended a stream if it is writing at that moment.

        Args:
            pieces: text or token ids.
            model: its name; may be empty where the server holds one with labels.
            timeout: seconds the whole stream may take.
        """
        call = self._stub.StreamClassify(timeout=self._seconds(timeout))

        async def exchange(request: v1.StreamClassifyRequest) -> v1.StreamClassifyResponse:
            # grpc.aio will not write to a call that has ended meanwhile; reading then tells why it has.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(request)
            response = await call.read()
            assert isinstance(response, v1.StreamClassifyResponse)  # Else read() has raised the status.
            return response

        try:
            with _errors(self.address):
                await exchange(v1.StreamClassifyRequest(config=v1.StreamConfig(model=model)))
                async for piece in _asynchronous(pieces):
                    request = v1.StreamClassifyRequest(piece=v1.Piece())
                    with _expressible():
                        _set_input(request.piece, piece)
                    yield _prediction((await exchange(request)).result.prediction)
                await call.done_writing()
        finally:
            call.cancel()


def _set_input(message: v1.GenerateRequest | v1.ClassifyRequest | v1.Piece, given: Input) -> None:
    if isinstance(given, str):
        message.text = given
    else:
        message.tokens.ids.extend(given)


async def _asynchronous(pieces: AsyncIterable[Input] | Iterable[Input]) -> AsyncIterator[Input]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, address) from error


@contextlib.contextmanager
def _expressible() -> Iterator[None]:
    """What the protocol cannot even express is refused like what the server refuses."""
    try:
        yield
    except (ValueError, TypeError) as error:
        message = f"the request cannot be expressed: {error}"
        raise InvalidRequestError(message, code=grpc.StatusCode.INVALID_ARGUMENT) from error


def _model(model: v1.Model) -> Model:
    return Model(
        name=model.spec.name,
        digest=model.digest,
        provider=model.provider,
        slot_count=model.slot_count,
        running_count=model.running_count,
        waiting_count=model.waiting_count,
        waiting_limit=model.waiting_limit,
        spec=model.spec,
    )


def _prediction(prediction: v1.Prediction) -> Prediction:
    return Prediction(
        labels=tuple(Label(label.label, label.probability) for label in prediction.labels),
        steps=tuple(Label(label.label, label.probability) for label in prediction.steps),
        step_count=prediction.step_count,
    )
