"""A generation on a session while it runs: from the scheduler's events through the journal to whoever listens.

    scheduler -> Run.receive -> journal -> store has it -> session takes it -> listeners are told

So a listener never has a token that the store has not. Several may listen to one run: a client that has lost its
connection comes again under the same name while the server still believes in the first one. When nobody listens any
more the run is broken off where it is; it can be continued from there.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from functools import partial

from elman_server.errors import StoreError
from elman_server.scheduling import Event, Failed, Finished, Generation, Receiver, Scheduler, Snapshot, Tokens
from elman_server.sessions.journal import Journal
from elman_server.sessions.session import TOKEN_TYPE, Advance, Call, Session, StateLayout, advanced
from elman_server.sessions.session import Snapshot as PackedSnapshot

Take = Callable[[Session, Advance], None]


class Run:
    """One generation on a session; implements the scheduler's `Receiver`.

    Args:
        session: which; it takes what the store has.
        call: what is known of the call so far, under which name ever.
        journal: where changes go.
        layout: of the model's state.
        take: has the session take a change.
        end: called when the last change is written and nothing more will come, with whether a write has failed.

    Attributes:
        over: set then.
    """

    def __init__(
        self,
        session: Session,
        call: Call,
        *,
        journal: Journal,
        layout: StateLayout,
        take: Take,
        end: Callable[[bool], None],
    ) -> None:
        self.session = session
        self.call = call  # as the store has it
        self.over = asyncio.Event()
        self._call = call  # as it will be when all is written
        self._position = session.position
        self._version = session.version
        self._journal = journal
        self._layout = layout
        self._take = take
        self._end = end
        self._listeners: list[Receiver] = []
        self._stop: Callable[[], None] = lambda: None
        self._prompt = array(TOKEN_TYPE)  # as long as it is not written
        self._unwritten = 0
        self._last: Event | None = None  # what is told in the end
        self._ended = False
        self._failed = False

    def start(self, scheduler: Scheduler, generation: Generation, prompt: array[int]) -> None:
        """Begin to run. The prompt is written with what first comes of it: where nothing does, nothing has been.

        Raises:
            QueueFullError: too many wait already; nothing has changed.
            ServerDrainingError: the server is shutting down.
        """
        scheduler.submit(generation)
        self._stop = partial(scheduler.abort, generation)
        self._prompt = prompt

    @property
    def ending(self) -> bool:
        """Whether nothing more will come of it, though not everything is written."""
        return self._ended

    def join(self, listener: Receiver) -> None:
        """Listen: to all that is written, and to what will be."""
        self._listeners.append(listener)
        known = self.session.tokens[self.call.start + self.call.prompt_count : self.call.end]
        if known:
            listener.receive(Tokens(tuple(known)))

    def leave(self, listener: Receiver) -> None:
        """Listen no more. Harmless after the end."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            if not self._listeners and not self._ended:
                self._break_off()

    def stop(self, error: Exception) -> None:
        """Break off; listeners are told why."""
        if not self._ended:
            self._last = Failed(error)
            self._break_off()

    def _break_off(self) -> None:
        self._ended = True
        self._stop()
        self._settle()

    def receive(self, event: Event) -> None:
        if self._ended:
            return
        if isinstance(event, Tokens):
            self._call = advanced(self._call, len(event.ids))
            self._write(array(TOKEN_TYPE, event.ids), None, self._call, event)
        elif isinstance(event, Snapshot):
            self._write(array(TOKEN_TYPE), PackedSnapshot(event.position, self._layout.pack(event.state)), self._call)
        elif isinstance(event, Finished):
            self._ended = True
            self._last = event
            self._call = advanced(self._call, 0, event.reason.value)
            # Without a state where no step has been taken.
            packed = None if event.state is None else PackedSnapshot(event.position, self._layout.pack(event.state))
            self._write(array(TOKEN_TYPE), packed, self._call)
        else:
            self._ended = True
            self._last = event
            self._settle()

    def _write(
        self, tokens: array[int], snapshot: PackedSnapshot | None, call: Call, event: Event | None = None
    ) -> None:
        dropped = () if snapshot is None else tuple(self.session.superfluous(snapshot))
        tokens, self._prompt = self._prompt + tokens, array(TOKEN_TYPE)
        named = call if call.request_id else None
        self._version += 1
        change = Advance(
            self.session.session_id,
            self._position,
            time.time(),
            tokens,
            named,
            snapshot,
            dropped,
            self._version,
            self.session.fence,
        )
        self._position += len(tokens)
        self._unwritten += 1
        self._journal.write(change, partial(self._written, change, call, event))

    def _written(self, change: Advance, call: Call, event: Event | None, error: StoreError | None) -> None:
        self._unwritten -= 1
        if error is not None and not self._failed:
            self._failed = self._ended = True
            self._last = Failed(error)
            self._stop()
        if not self._failed:
            self._take(self.session, change)
            self.call = call
            if event is not None:
                for listener in self._listeners:
                    listener.receive(event)
        self._settle()

    def _settle(self) -> None:
        """Tell the end when it has come and everything is written."""
        if not self._ended or self._unwritten or self.over.is_set():
            return
        self.over.set()
        self._end(self._failed)
        if self._last is not None:
            for listener in self._listeners:
                listener.receive(self._last)
