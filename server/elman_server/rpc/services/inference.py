"""The calls of elman.v1.InferenceService."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from elman_protos import v1
from elman_server.inference.batch import Cancel, Done, answer_batch
from elman_server.inference.choose import choose
from elman_server.inference.classify import Classification, classify
from elman_server.inference.classify_stream import StreamClassifier
from elman_server.inference.classify_trees import start_trees
from elman_server.inference.generate import generate
from elman_server.inference.generation_events import GenerationUpdate
from elman_server.inference.resources import Resources
from elman_server.rpc.requests.choose import parse_choose
from elman_server.rpc.requests.classify import parse_classify, parse_config, parse_pieces
from elman_server.rpc.requests.generate import parse_generate
from elman_server.rpc.responses.batches import classify_many_responses, generate_many_responses
from elman_server.rpc.responses.choice import choose_response
from elman_server.rpc.responses.classification import classify_response, stream_response
from elman_server.rpc.responses.generation import generate_response
from elman_server.rpc.responses.models import model_message
from elman_server.rpc.transport.callers import Context, caller
from elman_server.rpc.transport.writer import Writer


class InferenceServicer(v1.InferenceServiceServicer):
    """Runs models.

    A call that ends for any reason (its client has gone, its deadline has passed, it failed) aborts its sequences,
    whose slots are free after the iteration that is running.

    Args:
        resources: what the server has.
        writer: sends messages.
    """

    def __init__(self, resources: Resources, writer: Writer) -> None:
        self._resources = resources
        self._writer = writer
        self._streams = StreamClassifier(resources)

    async def ListModels(self, request: v1.ListModelsRequest, context: Context) -> v1.ListModelsResponse:
        models = [model_message(model, self._resources.prefixes) for model in self._resources.models]
        return v1.ListModelsResponse(models=models)

    async def GetModel(self, request: v1.GetModelRequest, context: Context) -> v1.GetModelResponse:
        model = self._resources.models.named(request.name, "name")
        return v1.GetModelResponse(model=model_message(model, self._resources.prefixes))

    async def Generate(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, request: v1.GenerateRequest, context: Context
    ) -> None:
        parsed = parse_generate(request)
        async with aclosing(generate(self._resources, parsed, caller.get())) as updates:
            async for update in updates:
                await self._writer.write(context, generate_response(update))

    async def GenerateMany(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.GenerateManyRequest], context: Context
    ) -> None:
        identity = caller.get()

        async def answer(request: v1.GenerateRequest) -> AsyncGenerator[GenerationUpdate, None]:
            async with aclosing(generate(self._resources, parse_generate(request), identity)) as updates:
                async for update in updates:
                    yield update

        batches = (message.requests async for message in requests)
        async with aclosing(answer_batch(batches, answer)) as answers:
            async for some in answers:
                for response in generate_many_responses(some):
                    await self._writer.write(context, response)

    async def ClassifyMany(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.ClassifyManyRequest], context: Context
    ) -> None:
        identity = caller.get()

        async def answer(request: v1.ClassifyRequest) -> AsyncGenerator[Classification, None]:
            yield await classify(self._resources, parse_classify(request), identity)

        def start(some: Sequence[v1.ClassifyRequest], done: Sequence[Done]) -> Sequence[Cancel]:
            return start_trees(self._resources, [parse_classify(request) for request in some], done)

        batches = (message.requests async for message in requests)
        async with aclosing(answer_batch(batches, answer, start)) as answers:
            async for some in answers:
                for response in classify_many_responses(some):
                    await self._writer.write(context, response)

    async def Choose(self, request: v1.ChooseRequest, context: Context) -> v1.ChooseResponse:
        parsed = parse_choose(request)
        return choose_response(await choose(self._resources, parsed, caller.get()))

    async def Classify(self, request: v1.ClassifyRequest, context: Context) -> v1.ClassifyResponse:
        parsed = parse_classify(request)
        return await classify_response(await classify(self._resources, parsed, caller.get()))

    async def StreamClassify(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, requests: AsyncIterator[v1.StreamClassifyRequest], context: Context
    ) -> None:
        config = await parse_config(requests)
        pieces = parse_pieces(requests, in_session=config.session is not None)
        async with aclosing(self._streams.answer(config, pieces)) as events:
            async for event in events:
                await self._writer.write(context, await stream_response(event))
