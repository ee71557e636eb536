"""What a server exports, a server with the same settings imports; what it could not import is refused when it is
exported, before anything is deleted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from elman import Client, ElmanError, InvalidRequestError
from elman_bundle import Bundle
from tests.support.command_line import elman
from tests.support.serving import serving

LIMIT = 5500


async def exported_or_refused(client: Client, name: str) -> ElmanError | None:
    """Export a session and import the file; returns why it was not exported."""
    try:
        content = await client.export_session(name)
    except ElmanError as error:
        assert (await client.get_session(name)).session_id == name
        return error
    copy = await client.import_session(content, session_id="c" * 64)
    assert copy.position == (await client.get_session(name)).position
    texts = [
        await client.generate(session=one, max_tokens=3, seed=1, temperature=1.0).text() for one in (name, "c" * 64)
    ]
    assert texts[0] == texts[1]
    await client.delete_session("c" * 64)
    return None


async def test_a_file_that_is_exported_can_be_imported(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    refusals: list[ElmanError | None] = []
    async with serving(bundles["lstm"], message_limit=LIMIT, input_limit=5000) as running:
        await running.client.create_session([1] * 700, session_id="s")
        for _ in range(12):
            refusals.append(await exported_or_refused(running.client, "s"))
            await running.client.generate(session="s", max_tokens=32).text()
        assert refusals[0] is None
        file = tmp_path / "s.safetensors"
        refused = await asyncio.to_thread(
            elman, "session", "export", "s", file, "--server", running.address, COLUMNS="200"
        )
        assert refused.returncode == 1
        assert "--message-limit" in refused.stderr
        assert os.listdir(tmp_path) == []
    last = refusals[-1]
    assert last is not None
    assert last.reason == "ANSWER_TOO_LARGE"
    assert "--message-limit" in str(last)


async def test_a_session_whose_state_is_far_behind_is_refused(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["lstm"], input_limit=64, snapshot_steps=10_000) as running:
        client = running.client
        await client.create_session("ab", session_id="s")
        await client.generate(session="s", max_tokens=200).text()
        assert await exported_or_refused(client, "s") is None
        await client.rewind_session("s", 150)
        refusal = await exported_or_refused(client, "s")
        assert isinstance(refusal, InvalidRequestError)
        assert "whose state is 148 tokens behind; in a file it may be 64" in str(refusal)
        await client.fork_session("s", new_session_id="f")
        await client.generate(session="f", max_tokens=1).text()
        assert await exported_or_refused(client, "f") is None


@pytest.mark.parametrize("size", [LIMIT + 1, 5 * LIMIT])
async def test_a_file_too_large_for_a_server_is_refused_by_name(bundles: Mapping[str, Bundle], size: int) -> None:
    async with serving(bundles["lstm"], message_limit=LIMIT) as running:
        with pytest.raises(InvalidRequestError, match="--message-limit") as caught:
            await running.client.import_session(b"x" * size)
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
