"""Running the forced steps of a session: what is to be labelled, a prompt, or tokens behind the latest snapshot."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import Arrays
from elman_server.scheduling import Event, Failed, Reading, ReadingFinished, Scheduler, Snapshot
from elman_server.sessions.session import Session, StateLayout, thinned
from elman_server.sessions.session import Snapshot as PackedSnapshot


@dataclass(frozen=True)
class SessionModel:
    """What sessions know of a model.

    Attributes:
        name: its name.
        digest: of its bundle.
        scheduler: what runs it.
        layout: of its state.
        vocabulary_size: of its tokens.
        generates: whether it generates. If so, a session's state is one token behind at least, so that what follows
            the last one can be chosen anew.
    """

    name: str
    digest: str
    scheduler: Scheduler
    layout: StateLayout
    vocabulary_size: int
    generates: bool

    @property
    def lag(self) -> int:
        """By how many tokens a session's state is behind at least."""
        return 1 if self.generates else 0


@dataclass(frozen=True)
class Beginning:
    """Where the steps of a call begin.

    Attributes:
        position: the steps that have been taken.
        state: the state after them; None: the model's initial one.
        backlog: the session's tokens that the state has not read.
    """

    position: int
    state: Arrays | None
    backlog: NDArray[np.int64]


def beginning(session: Session, model: SessionModel) -> Beginning:
    """The latest snapshot from which a session goes on."""
    snapshot = session.snapshot_before(session.position - model.lag)
    if snapshot is None or len(snapshot.state) != model.layout.size:
        return Beginning(0, None, np.array(session.tokens, np.int64))
    backlog = np.array(session.tokens[snapshot.position :], np.int64)
    return Beginning(snapshot.position, model.layout.unpack(snapshot.state), backlog)


class _Answer:
    """The end of a reading, and the snapshots on the way; implements `Receiver`."""

    def __init__(self) -> None:
        self.end: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self.snapshots: list[Snapshot] = []

    def receive(self, event: Event) -> None:
        if isinstance(event, Snapshot):
            self.snapshots.append(event)
        elif not self.end.done():
            self.end.set_result(event)


@dataclass(frozen=True)
class Read:
    """What reading some tokens has shown.

    Attributes:
        outputs: of each of the new tokens, or of the last one, or nothing.
        snapshots: the states on the way and, in the end, that from which the session goes on.
    """

    outputs: NDArray[Any]
    snapshots: list[PackedSnapshot]


async def read(
    session: Session,
    model: SessionModel,
    tokens: array[int],
    *,
    every_step: bool,
    shown: bool,
    snapshot_steps: int,
    always: bool = False,
) -> Read:
    """Read new tokens behind those of a session.

    Args:
        session: where to begin; it does not change.
        model: its model.
        tokens: what is to be read.
        every_step: whether the outputs of every token are wanted, or of the last one.
        shown: whether any outputs are wanted.
        snapshot_steps: how many steps lie between two snapshots, about.
        always: see `Scheduler.submit`.

    Raises:
        QueueFullError, ServerDrainingError, ModelFailedError: the scheduler's.
    """
    begin = beginning(session, model)
    forced = np.concatenate([begin.backlog, np.array(tokens, np.int64)])
    # The last tokens are read apart where the state is wanted that has not read them.
    parts = [forced[: len(forced) - model.lag], forced[len(forced) - model.lag :] if shown else forced[:0]]
    snapshots: list[PackedSnapshot] = []
    outputs: list[NDArray[Any]] = []
    state, position = begin.state, begin.position
    for part in parts:
        if not len(part):
            continue
        answer = _Answer()
        reading = Reading(
            part,
            answer,
            state,
            every_step=every_step,
            position=position,
            keep_state=part is parts[0],
            snapshot_steps=snapshot_steps,
        )
        finished = await _run(model.scheduler, reading, answer, always=always or position > begin.position)
        outputs.append(finished.outputs)
        if part is parts[0]:
            snapshots += [PackedSnapshot(known.position, model.layout.pack(known.state)) for known in answer.snapshots]
            assert finished.state is not None
            state, position = finished.state, position + len(part)
            snapshots.append(PackedSnapshot(position, model.layout.pack(state)))
    snapshots = thinned(snapshots)
    if not outputs:
        return Read(np.empty(0), snapshots)
    return Read(np.concatenate(outputs)[len(begin.backlog) :] if every_step else outputs[-1], snapshots)


async def _run(scheduler: Scheduler, reading: Reading, answer: _Answer, *, always: bool) -> ReadingFinished:
    scheduler.submit(reading, always=always)
    try:
        event = await answer.end
    finally:
        scheduler.abort(reading)
    if isinstance(event, Failed):
        raise event.error
    assert isinstance(event, ReadingFinished)
    return event
