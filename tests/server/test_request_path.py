"""The way of a request down to the scheduler: few files, and none is entered again after it has been left."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import elman_bundle
import elman_server
from elman_protos import v1
from tests.support.fake_engine import FakeEngine
from tests.support.serving import Running, serving_fake

PACKAGES = [Path(package.__path__[0]) for package in (elman_server, elman_bundle)]
MAX_FILES = 12
LONG = "abcdefg" * 20  # long enough for the prefix cache


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving_fake(FakeEngine(), name="fake") as running:
        yield running


@contextmanager
def followed(first: str, last: str) -> Iterator[list[str]]:
    """The files of elman that are entered from a call of a function `first` until one of `last`, in order. A call
    within a file enters none, and calls one after the other count once."""
    files: list[str] = []
    seen: list[FrameType] = []  # A coroutine that goes on is no new call.
    following = False

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal following
        path = Path(frame.f_code.co_filename)
        package = next((package for package in PACKAGES if path.is_relative_to(package)), None)
        if event != "call" or package is None or any(frame is known for known in seen):
            return
        following = following or frame.f_code.co_qualname == first
        if following:
            seen.append(frame)
            name = str(path.relative_to(package.parent))
            caller = frame.f_back
            within = caller is not None and caller.f_code.co_filename == frame.f_code.co_filename
            if not within and files[-1:] != [name]:
                files.append(name)
            following = frame.f_code.co_qualname != last

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield files
    finally:
        sys.setprofile(before)


SAMPLED = v1.SamplingDecoding(temperature=0.7, top_k=3, top_p=0.9, min_p=0.01)
REQUESTS = {
    "short": v1.GenerateRequest(text="ab", max_tokens=3),
    "long": v1.GenerateRequest(text=LONG, max_tokens=3),
    "tokens": v1.GenerateRequest(tokens=v1.TokenSequence(ids=[1, 2, 3]), max_tokens=3),
    "sampled": v1.GenerateRequest(text=LONG, max_tokens=3, sampling=SAMPLED, interval=Duration(nanos=10**8)),
}
# The number of additional files that belong to an option.
WITH_OPTIONS = {
    "samples": (v1.GenerateRequest(text=LONG, max_tokens=3, sampling=v1.SamplingDecoding(sample_count=2)), 1),
    "beam": (v1.GenerateRequest(text="ab", max_tokens=3, beam=v1.BeamDecoding(width=2)), 1),
    "shaped": (v1.GenerateRequest(text="ab", max_tokens=3, shaping=v1.Shaping(repetition_penalty=1.1)), 3),
    "constrained": (v1.GenerateRequest(text="ab", max_tokens=3, constraint=v1.Constraint(regex="[a-c]+")), 3),
}


async def path_of(address: str, request: v1.GenerateRequest) -> list[str]:
    """The files that a request passes. It is sent twice, because what is computed once is not on the way."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = v1.InferenceServiceStub(channel)
        assert [response async for response in stub.Generate(request)]
        with followed("InferenceServicer.Generate", "Scheduler.submit") as files:
            assert [response async for response in stub.Generate(request)]
    assert files[0] == "elman_server/rpc/services/inference.py"
    assert files[-1].startswith("elman_server/scheduling/")
    return files


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_generation_goes_straight_to_the_scheduler(running: Running, name: str) -> None:
    files = await path_of(running.address, REQUESTS[name])
    assert len(files) == len(set(files)), "\n".join(files)
    assert len(files) <= MAX_FILES, files


@pytest.mark.parametrize("name", WITH_OPTIONS)
async def test_an_option_adds_its_own_files_only(running: Running, name: str) -> None:
    request, more = WITH_OPTIONS[name]
    files = await path_of(running.address, request)
    assert len(files) == len(set(files)), "\n".join(files)
    assert len(files) <= MAX_FILES + more, files
