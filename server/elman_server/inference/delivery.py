"""From the thread of a scheduler to the coroutines that wait for its events.

An iteration of a model brings events for many sequences: one crossing into the event loop delivers all of them. A
coroutine takes from a mailbox everything that has arrived since it last looked, so a client that reads slowly gets a
few large messages and one that reads fast gets many small ones.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from elman_server.event_loop import ServerEventLoop
from elman_server.scheduling import INTERNAL, Deliver, Emission, Event, Failed, Receiver, Snapshot, Tokens

_log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 0.02  # Running the model while the event loop serializes responses slows both down.

_MOST_UNREAD = 4096  # tokens of a mailbox: a client that is this far behind does not read

KeepSnapshot = Callable[[Snapshot], None]


def deliver_into(loop: ServerEventLoop) -> Deliver:
    """Return a function that delivers events to their receivers on `loop`, from any other thread.

    It returns when the loop has written them and accepted the calls that have arrived, so that it is idle, or when the
    loop has more to do than a model should wait for.
    """

    def deliver(emissions: list[Emission]) -> None:
        idle = threading.Event()

        def receive() -> None:
            for receiver, event in emissions:
                _hand_over(receiver, event)
            loop.when_idle(idle.set)

        loop.call_soon_threadsafe(receive)
        idle.wait(_PATIENCE_SECONDS)

    return deliver


def _hand_over(receiver: Receiver, event: Event) -> None:
    """Give a receiver its event. A receiver that raises gets `Failed` instead, and the events of others are
    delivered."""
    try:
        receiver.receive(event)
    except Exception:
        _log.exception("event not received", kind=type(event).__name__)
        if not isinstance(event, Failed):
            _hand_over(receiver, Failed(INTERNAL))


@dataclass(eq=False)
class Mailbox:
    """The events of one sequence; implements `Receiver`. Lives on one event loop.

    Attributes:
        arrived: set when an event arrives; shared by mailboxes that one coroutine waits for.
        keep: takes the snapshots, which are then not events of the mailbox.
        set_paused: pauses the sequence while too many tokens are unread, so that others get its slot.
    """

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    keep: KeepSnapshot | None = None
    set_paused: Callable[[bool], None] | None = None
    _events: list[Event] = field(default_factory=list, init=False)
    _unread: int = field(default=0, init=False)  # tokens among the events
    _is_paused: bool = field(default=False, init=False)

    def receive(self, event: Event) -> None:
        if self.keep is not None and isinstance(event, Snapshot):
            self.keep(event)
            return
        self._events.append(event)
        self.arrived.set()
        if isinstance(event, Tokens):
            self._unread += len(event.ids)
            if self._unread > _MOST_UNREAD and not self._is_paused and self.set_paused is not None:
                self._is_paused = True
                self.set_paused(True)

    @property
    def has_events(self) -> bool:
        """Whether there is an event to take."""
        return bool(self._events)

    def take(self) -> list[Event]:
        """Return the events since the last call, in order; may be empty."""
        events, self._events, self._unread = self._events, [], 0
        if self._is_paused and self.set_paused is not None:
            self._is_paused = False
            self.set_paused(False)
        return events

    async def next_events(self) -> list[Event]:
        """Wait until there is an event and return all since the last call, in order."""
        await self.arrived.wait()
        self.arrived.clear()
        return self.take()
