"""No message, however long its lists are, keeps the event loop from its other calls for a tenth of a second."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from safetensors.numpy import save

from elman_bundle import Bundle
from elman_protos import v1
from elman_server.rpc.transport.sizes import has_more_fields
from tests.support.serving import Running, serving

LIMIT = 4 * 2**20
# Sends a file as the only message of a call, from a process whose own work does not count.
SEND = """
import sys, grpc
path, address, content = sys.argv[1], sys.argv[2], open(sys.argv[3], "rb").read()
with grpc.insecure_channel(address) as channel:
    for _ in range(2):
        try:
            print(len(list(channel.stream_stream(path)(iter([content])))))
        except grpc.RpcError as error:
            print(error.code().name, error.details())
"""


def forbidden_tokens() -> v1.GenerateRequest:
    ids = [1] * (LIMIT - 1000)
    return v1.GenerateRequest(model="lstm", text="a", shaping=v1.Shaping(forbidden_token_ids=ids))


def forced_tokens() -> v1.GenerateRequest:
    ids = [1] * (LIMIT - 1000)
    return v1.GenerateRequest(model="lstm", text="a", shaping=v1.Shaping(forced_token_ids=ids))


def tokens() -> v1.GenerateRequest:
    return v1.GenerateRequest(model="lstm", tokens=v1.TokenSequence(ids=[1] * (LIMIT - 1000)))


def nodes() -> v1.ClassifyRequest:
    tree = v1.Tree(nodes=v1.TreeNodes(nodes=[v1.TreeNode()] * (LIMIT // 2 - 1000)))
    return v1.ClassifyRequest(model="tags", tree=tree)


def dimensions() -> v1.ClassifyRequest:
    tensor = v1.Tensor(data_type=v1.DATA_TYPE_FLOAT32, shape=[1] * (LIMIT - 1000))
    return v1.ClassifyRequest(model="tags", tensor=tensor)


def tensors() -> v1.ImportSessionRequest:
    content = save({f"state.{number}": np.zeros(1, np.int8) for number in range(60_000)}, {"checksum": "0"})
    return v1.ImportSessionRequest(content=content[: LIMIT - 1000])


def requests() -> bytes:
    return b"\x0a\x00" * (LIMIT // 2)


def candidates() -> v1.ScoreRequest:
    return v1.ScoreRequest(model="lstm", candidates=[v1.AnalysisInput(text="ab")] * 300_000)


def stop_sequences() -> v1.GenerateRequest:
    return v1.GenerateRequest(model="lstm", text="a", stop_sequences=["x"] * 1_000_000)


CASES: dict[Callable[[], Any], str] = {
    forbidden_tokens: "InferenceService/Generate",
    forced_tokens: "InferenceService/Generate",
    tokens: "InferenceService/Generate",
    nodes: "InferenceService/Classify",
    dimensions: "InferenceService/Classify",
    tensors: "SessionService/ImportSession",
    requests: "InferenceService/GenerateMany",
    candidates: "AnalysisService/Score",
    stop_sequences: "InferenceService/Generate",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(bundles: Mapping[str, Bundle]) -> AsyncIterator[Running]:
    async with serving(bundles["lstm"], bundles["tags"]) as running:
        yield running


async def longest_stall(ended: asyncio.Task[Any]) -> float:
    """The most processor seconds that the loop's thread takes before it comes to its other tasks."""
    longest, last = 0.0, time.thread_time()
    while not ended.done():
        await asyncio.sleep(0)
        await asyncio.sleep(0.0005)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    return longest


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("make", CASES)
async def test_no_message_holds_up_the_loop(running: Running, tmp_path: Path, make: Callable[[], Any]) -> None:
    message = make()
    content = tmp_path / "content"
    content.write_bytes(message if isinstance(message, bytes) else message.SerializeToString())
    del message
    assert content.stat().st_size <= LIMIT
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SEND, f"/elman.v1.{CASES[make]}", running.address, str(content)),
        stdout=asyncio.subprocess.PIPE,
    )
    gc.disable()  # What is collected here is mostly not the server's.
    try:
        ended = asyncio.create_task(process.communicate())
        longest = await longest_stall(ended)
    finally:
        gc.enable()
    output, _ = await ended
    lines = output.decode().splitlines()
    assert len(lines) == 2
    assert all("INVALID_ARGUMENT" in line or "RESOURCE_EXHAUSTED" in line for line in lines), lines
    assert longest < 0.1


@pytest.mark.parametrize("limit", [0, 1, 4, 5, 9, 10, 11, 100])
def test_fields_are_counted_with_those_of_parts(limit: int) -> None:
    request = v1.GenerateRequest(model="m", text="t", seed=-5, shaping=v1.Shaping(logit_bias={1: 2.0, 3: 4.0}))
    # model, text, seed, shaping; in it two entries of a map, with two fields each
    assert has_more_fields(request.SerializeToString(), v1.GenerateRequest.DESCRIPTOR, limit) == (limit < 10)


@pytest.mark.parametrize("message", [b"", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b\x0c", b"\x0d\x01"])
def test_what_is_malformed_is_left_to_the_parser(message: bytes) -> None:
    assert not has_more_fields(message, v1.GenerateRequest.DESCRIPTOR, 100)
