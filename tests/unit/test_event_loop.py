"""The event loop says that it is idle when, and only when, it has nothing left to do."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from elman_server.event_loop import ServerEventLoop


@pytest.mark.parametrize("rounds", [0, 1, 7, 100])
async def test_idle_comes_after_everything_that_is_ready_however_many_rounds_it_takes(rounds: int) -> None:
    loop = ServerEventLoop.running()
    done: list[str] = []

    async def work() -> None:
        for _ in range(rounds):
            await asyncio.sleep(0)
        done.append("work")

    idle = asyncio.Event()
    loop.when_idle(lambda: (done.append("idle"), loop.call_soon_threadsafe(idle.set)))
    working = asyncio.create_task(work())
    await idle.wait()
    await working
    assert done == ["work", "idle"]


async def test_idle_comes_after_input_that_has_arrived() -> None:
    loop = ServerEventLoop.running()
    done: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        loop.add_reader(ours, lambda: (ours.recv(1), done.append("read")))
        theirs.send(b"x")
        idle = asyncio.Event()
        loop.when_idle(lambda: (done.append("idle"), loop.call_soon_threadsafe(idle.set)))
        await idle.wait()
        loop.remove_reader(ours)
    assert done == ["read", "idle"]


def test_a_thread_can_wait_for_it() -> None:
    async def serve() -> bool:
        loop, idle = ServerEventLoop.running(), threading.Event()
        loop.call_soon_threadsafe(loop.when_idle, idle.set)
        return await asyncio.to_thread(idle.wait, 10)

    with asyncio.Runner(loop_factory=ServerEventLoop) as runner:
        assert runner.run(serve())


def test_another_kind_of_loop_is_refused() -> None:
    async def serve() -> None:
        ServerEventLoop.running()

    with (
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        pytest.raises(TypeError, match=r"loop_factory=ServerEventLoop.*, got _UnixSelectorEventLoop"),
    ):
        runner.run(serve())
