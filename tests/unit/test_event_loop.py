"""The event loop signals that it is idle if, and only if, it has nothing left to do."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from elman_server.event_loop import ServerEventLoop


@pytest.mark.parametrize("rounds", [0, 1, 7, 100])
async def test_idle_is_signalled_after_all_ready_callbacks(rounds: int) -> None:
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


async def test_idle_is_signalled_after_pending_input() -> None:
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


def test_thread_can_wait_for_idle() -> None:
    async def serve() -> bool:
        loop, idle = ServerEventLoop.running(), threading.Event()
        loop.call_soon_threadsafe(loop.when_idle, idle.set)
        return await asyncio.to_thread(idle.wait, 10)

    with asyncio.Runner(loop_factory=ServerEventLoop) as runner:
        assert runner.run(serve())


def test_other_event_loops_are_rejected() -> None:
    async def serve() -> None:
        ServerEventLoop.running()

    with (
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        pytest.raises(TypeError, match=r"loop_factory=ServerEventLoop.*, got _UnixSelectorEventLoop"),
    ):
        runner.run(serve())
