"""What an earlier version wrote is served unchanged: bundles, a SQLite store, an exported session."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from elman_bundle import load_bundle
from elman_protos import v1
from elman_server.rpc.requests.fields import DECLARED
from tests.support.paths import FIXTURES
from tests.support.serving import Running, serving

FOLDER = FIXTURES / "b8167f8"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


FINGERPRINTS: dict[str, Any] = json.loads((FOLDER / "fingerprints.json").read_text(encoding="utf-8"))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    store = tmp_path / "sessions.db"
    shutil.copy(FOLDER / "sessions.db", store)
    bundles = [load_bundle(FOLDER / "bundles" / name) for name in EXPECTED["digests"]]
    async with serving(*bundles, store=str(store)) as running:
        yield running


async def generated(address: str, request: v1.GenerateRequest) -> dict[str, Any]:
    text, ids, position = "", list[int](), None
    async with grpc.aio.insecure_channel(address) as channel:
        async for response in v1.InferenceServiceStub(channel).Generate(request):
            text += response.chunk.text
            ids += response.chunk.token_ids
            if response.HasField("finished"):
                position = response.finished.session_position
    return {"text": text, "ids": ids, "position": position}


@pytest.mark.parametrize("name", EXPECTED["digests"])
def test_the_digest_of_a_bundle_stays(name: str) -> None:
    assert load_bundle(FOLDER / "bundles" / name).digest == EXPECTED["digests"][name]


async def test_bundles_answer_as_before(running: Running) -> None:
    for name in ("text", "text-int8"):
        stream = running.client.generate("once upon ", model=name, max_tokens=48, temperature=0.9, top_p=0.95, seed=11)
        assert await stream.text() == EXPECTED[f"{name}.sampled"]
    prediction = await running.client.classify("a red rose", model="tags")
    assert [step.name for step in prediction.steps] == EXPECTED["tags"]


async def test_a_stored_session_goes_on_as_before(running: Running) -> None:
    found = await generated(
        running.address,
        v1.GenerateRequest(session=v1.SessionCall(session_id="kept"), text=" then ", max_tokens=40),
    )
    assert found["ids"] == EXPECTED["kept.next"]["ids"]
    assert found == EXPECTED["kept.next"]


async def test_a_repeated_call_gets_its_recorded_answer(running: Running) -> None:
    """The fingerprint of a request is stored: it must not change, or a retry would be refused."""
    request = v1.GenerateRequest.FromString(base64.b64decode(EXPECTED["first_request"]))
    assert await generated(running.address, request) == EXPECTED["first"]
    request.max_tokens += 1
    with pytest.raises(grpc.aio.AioRpcError, match="request_id"):
        await generated(running.address, request)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_fingerprint_of_a_request_stays(name: str) -> None:
    case = FINGERPRINTS[name]
    declared = DECLARED[f"elman.v1.{case['message']}"]
    request = getattr(v1, case["message"]).FromString(base64.b64decode(case["request"]))
    assert declared.fingerprint(request).hex() == case["fingerprint"]


async def test_an_exported_session_goes_on_as_before(running: Running) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        content = (FOLDER / "moved.session").read_bytes()
        await v1.SessionServiceStub(channel).ImportSession(v1.ImportSessionRequest(content=content))
    found = await generated(
        running.address,
        v1.GenerateRequest(session=v1.SessionCall(session_id="moved"), text=" then ", max_tokens=40),
    )
    assert found == EXPECTED["moved.next"]
