"""The bridge from a scheduler's thread to the coroutine that writes to one client.

A chunk of steps brings news for many clients: one crossing into the event loop delivers it all. A client's writer takes
whatever has gathered since its last write, so that a slow reader gets few large messages and a fast one many small.
"""

from __future__ import annotations

import asyncio
import threading

from elman_server.event_loop import ServerEventLoop
from elman_server.scheduling import Deliver, Emission, Event

_PATIENCE_SECONDS = 0.02  # running the model while the loop serializes responses slows both down


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


def deliver_into(loop: ServerEventLoop) -> Deliver:
    """Returns a function that delivers events to their receivers on `loop`, from any other thread.

    It returns when the loop has written them and accepted the calls that have arrived, so that it is idle, or when the
    loop has more to do than a model should wait for.
    """

    def deliver(emissions: list[Emission]) -> None:
        idle = threading.Event()

        def receive() -> None:
            for receiver, event in emissions:
                receiver.receive(event)
            loop.when_idle(idle.set)

        loop.call_soon_threadsafe(receive)
        idle.wait(_PATIENCE_SECONDS)

    return deliver
