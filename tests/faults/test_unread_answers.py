"""An answer that nobody reads is dropped after a while, whatever the method."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import pytest

from elman_bundle import Bundle
from elman_protos import v1
from tests.support.rpc import check_error
from tests.support.serving import serving

Bundles = Mapping[str, Bundle]
LONG = 200_000
# The window of a stream is full after 64 KiB, unless the client asks for more.
UNREAD = [("grpc.http2.lookahead_bytes", 65535), ("grpc.http2.bdp_probe", 0)]


async def unread(channel: grpc.aio.Channel, path: str, request: Any) -> grpc.aio.AioRpcError:
    """Call a method, whose only answer is large, and read nothing of it until it is ended."""
    method: Any = channel.unary_stream(path, request_serializer=type(request).SerializeToString)
    stream = method(request)
    await asyncio.sleep(1.0)
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("no error")


@pytest.mark.parametrize("method", ["ExportSession", "GetSession"])
async def test_a_large_answer_is_read_in_time_or_dropped(bundles: Bundles, method: str) -> None:
    requests: dict[str, Any] = {
        "ExportSession": v1.ExportSessionRequest(session_id="s"),
        "GetSession": v1.GetSessionRequest(session_id="s", with_tokens=True),
    }
    async with (
        serving(bundles["tags"], input_limit=10**6, write_timeout=0.4) as running,
        grpc.aio.insecure_channel(running.address, options=UNREAD) as channel,
    ):
        await running.client.create_session("hello ", session_id="s")
        session = await running.server._resources.sessions.get("s")
        session.tokens.extend([1] * LONG)  # Reading them would take long.
        error = await unread(channel, f"/elman.v1.SessionService/{method}", requests[method])
        check_error(error, "RESOURCE_EXHAUSTED", "CLIENT_TOO_SLOW", None)
        assert len((await running.client.session_tokens("s")).text) == 6 + LONG
