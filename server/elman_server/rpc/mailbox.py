"""The bridge from a scheduler's thread to the coroutine that writes to one client.

A chunk of steps brings news for many clients: one crossing into the event loop delivers it all. A client's writer takes
whatever has gathered since its last write, so that a slow reader gets few large messages and a fast one many small.
"""

from __future__ import annotations

import asyncio
import threading

from elman_server.scheduling import Event
from elman_server.scheduling.running import Deliver, Emission

_PATIENCE = 0.02  # seconds; to go on beside those who talk takes both of them longer
_WRITING = 2  # rounds of the loop: one wakes those for whom there is something, in the next they write it
_TAKING_UP = 8  # about as many as it takes until a call that has come in is submitted


class Mailbox:
    """One sequence's events, on the event loop's side; implements `Receiver`."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._arrived = asyncio.Event()

    def receive(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    @property
    def has_events(self) -> bool:
        """Whether there is something to gather."""
        return bool(self._events)

    async def gather(self) -> list[Event]:
        """Everything since the last call, in order; waits until there is something."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events


def deliver_into(loop: asyncio.AbstractEventLoop) -> Deliver:
    """What hands a chunk's emissions to their receivers on `loop`; to be called on any thread. It returns when the loop
    has gone on with whatever was ready, writers and new calls, or has more to do than a model should wait for."""

    def deliver(emissions: list[Emission]) -> None:
        done = threading.Event()

        def go_on(rounds: int) -> None:
            if rounds:
                loop.call_soon(go_on, rounds - 1)
            else:
                done.set()

        def receive() -> None:
            for receiver, event in emissions:
                receiver.receive(event)
            go_on(_WRITING if emissions else _TAKING_UP)

        loop.call_soon_threadsafe(receive)
        done.wait(_PATIENCE)

    return deliver
