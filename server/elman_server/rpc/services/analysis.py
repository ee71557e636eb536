"""The calls of elman.v1.AnalysisService."""

from __future__ import annotations

from contextlib import aclosing

from elman_protos import v1
from elman_server.inference.embed import embed
from elman_server.inference.inspect import inspect
from elman_server.inference.resources import Resources
from elman_server.inference.score import score
from elman_server.rpc.requests.analysis import parse_embed, parse_inspect, parse_score
from elman_server.rpc.responses.analysis import ScoreResponses, embed_response, inspect_responses
from elman_server.rpc.transport.callers import Context, caller
from elman_server.rpc.transport.writer import Writer


class AnalysisServicer(v1.AnalysisServiceServicer):
    """Looks inside models. Calls end as those of `InferenceServicer` do.

    Args:
        resources: what the server has.
        writer: sends messages.
    """

    def __init__(self, resources: Resources, writer: Writer) -> None:
        self._resources = resources
        self._writer = writer
        self._message_bytes = resources.limits.message_bytes

    async def Score(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, request: v1.ScoreRequest, context: Context
    ) -> None:
        parsed = parse_score(request)
        async with aclosing(score(self._resources, parsed, caller.get())) as events:
            async for response in ScoreResponses(self._message_bytes).of(events):
                await self._writer.write(context, response)

    async def Embed(self, request: v1.EmbedRequest, context: Context) -> v1.EmbedResponse:
        parsed = parse_embed(request)
        return embed_response(await embed(self._resources, parsed))

    async def Inspect(  # type: ignore[override] # grpc.aio also takes coroutines that write
        self, request: v1.InspectRequest, context: Context
    ) -> None:
        parsed = parse_inspect(request)
        async with aclosing(inspect(self._resources, parsed)) as events:
            async for response in inspect_responses(events, self._message_bytes):
                await self._writer.write(context, response)
