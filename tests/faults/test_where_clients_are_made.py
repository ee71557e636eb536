"""A client may be made at import, before `asyncio.run`, in another thread, and be used on one loop after another."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Mapping

import pytest

from elman import Client
from elman_bundle import Bundle
from tests.support.serving import serving


async def names(client: Client) -> list[str]:
    return [model.name for model in await client.list_models(timeout=20)]


async def generated(client: Client) -> str:
    return await client.generate("ab", max_tokens=5, seed=1, timeout=20).text()


def in_a_thread(client: Client) -> list[str]:
    return asyncio.run(names(client))


async def test_one_client_serves_several_loops(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["gru"]) as running:
        made: list[Client] = []
        thread = threading.Thread(target=lambda: made.append(Client(running.address)))
        thread.start()
        thread.join()
        (client,) = made
        expected = await generated(running.client)
        assert await generated(client) == expected
        for _ in range(2):  # asyncio.run closes its loop each time.
            assert await asyncio.to_thread(in_a_thread, client) == ["gru"]
        results = await asyncio.gather(*(asyncio.to_thread(in_a_thread, client) for _ in range(4)), generated(client))
        assert results == [["gru"]] * 4 + [expected]
        await client.close()


FORK = """
import asyncio, os, sys
from elman import Client

async def names():
    return [model.name for model in await client.list_models(timeout=20)]

client = Client(sys.argv[1])
assert asyncio.run(names()) == ["gru"]
if os.fork():
    os.wait()
else:
    try:
        asyncio.run(names())
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
"""


async def test_after_a_fork_the_error_says_so(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["gru"]) as running:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FORK, running.address, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert b"from which this one was forked; grpc does not survive that" in said


async def test_a_closed_client_stays_closed(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["gru"]) as running:
        client = Client(running.address)
        assert await names(client) == ["gru"]
        await client.close()
        with pytest.raises(Exception, match="closed"):
            await names(client)
