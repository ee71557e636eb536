"""Runs forced steps on a session: the tokens to be labelled, a prompt, or tokens after the latest snapshot."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.scheduling import Event, Failed, Reading, ReadingFinished, Scheduler, Snapshot
from elman_server.sessions.model import SessionModel
from elman_server.sessions.session import Session
from elman_server.sessions.snapshots import Snapshot as PackedSnapshot
from elman_server.sessions.snapshots import thin


@dataclass(frozen=True)
class ReadResult:
    """The result of reading tokens.

    Attributes:
        outputs: [tokens, *shape] of every new token, [1, *shape] of the last one, or empty.
        snapshots: the states to keep; the last is the one that the session continues from.
    """

    outputs: NDArray[Any]
    snapshots: list[PackedSnapshot]


async def read_tokens(
    session: Session,
    model: SessionModel,
    tokens: array[int],
    *,
    every_step: bool,
    needs_outputs: bool,
    snapshot_steps: int,
    always: bool = False,
) -> ReadResult:
    """Read new tokens after those of a session. The session itself is not changed.

    Args:
        session: the session.
        model: its model.
        tokens: the new tokens.
        every_step: whether the outputs of every token are returned, or of the last one only.
        needs_outputs: whether outputs are needed at all.
        snapshot_steps: approximate number of steps between two snapshots.
        always: see `Scheduler.submit`.

    Raises:
        QueueFullError, ServerDrainingError, ModelFailedError: they cannot be read.
    """
    start = model.resume_point(session)
    forced = np.concatenate([start.unread, np.array(tokens, np.int64)])
    # The state that is kept has not read the last tokens, so these are read separately, for their outputs only.
    border = len(forced) - model.lag
    first, last = forced[:border], forced[border:] if needs_outputs else forced[:0]
    outputs: list[NDArray[Any]] = []
    snapshots: list[PackedSnapshot] = []
    state = start.state
    if len(first):
        collector = _Collector()
        reading = Reading(
            first,
            collector,
            state,
            position=start.position,
            every_step=every_step,
            keep_state=True,
            snapshot_steps=snapshot_steps,
        )
        finished = await collector.run(model.scheduler, reading, always=always)
        assert finished.state is not None
        outputs.append(finished.outputs)
        state = finished.state
        states = [*collector.snapshots, Snapshot(start.position + len(first), state)]
        snapshots = thin([PackedSnapshot(kept.position, model.layout.pack(kept.state)) for kept in states])
    if len(last):
        collector = _Collector()
        reading = Reading(last, collector, state, position=start.position + len(first), every_step=every_step)
        # The second part of an admitted call is never refused.
        finished = await collector.run(model.scheduler, reading, always=always or len(first) > 0)
        outputs.append(finished.outputs)
    if not outputs:
        return ReadResult(np.empty(0), snapshots)
    return ReadResult(np.concatenate(outputs)[len(start.unread) :] if every_step else outputs[-1], snapshots)


class _Collector:
    """Collects the snapshots and the last event of a reading; implements `Receiver`."""

    def __init__(self) -> None:
        self.last: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self.snapshots: list[Snapshot] = []

    def receive(self, event: Event) -> None:
        if isinstance(event, Snapshot):
            self.snapshots.append(event)
        elif not self.last.done():
            self.last.set_result(event)

    async def run(self, scheduler: Scheduler, reading: Reading, *, always: bool) -> ReadingFinished:
        """Run the reading that this is the receiver of; abort it if the caller is cancelled.

        Raises:
            QueueFullError, ServerDrainingError, ModelFailedError: it cannot be run.
        """
        scheduler.submit(reading, always=always)
        try:
            event = await self.last
        finally:
            scheduler.abort(reading)
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, ReadingFinished)
        return event
