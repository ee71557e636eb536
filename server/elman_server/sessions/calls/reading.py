"""Calls that read tokens: what they add to a session, and the outputs of the model."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from elman_server.errors import SessionBusyError
from elman_server.sessions.answers import Answers
from elman_server.sessions.calls.forced_steps import read_tokens
from elman_server.sessions.calls.records import Target, finished_call, pack_outputs, recorded_call, unpack_outputs
from elman_server.sessions.changes import Advance
from elman_server.sessions.model import SessionModel
from elman_server.sessions.registry import SessionRegistry
from elman_server.sessions.session import Call, Session
from elman_server.sessions.snapshots import Snapshot, superseded_positions

_READ = "read"  # the outcome of a reading; of a generation it is the finish reason


@dataclass(frozen=True)
class SessionReading:
    """The result of a reading.

    Attributes:
        outputs: [tokens, *shape] of every token of the call, or [1, *shape] of the last one.
        end: position of the session after the call.
    """

    outputs: NDArray[Any]
    end: int


class SessionReader:
    """Runs calls that read tokens.

    Args:
        registry: the sessions.
        snapshot_steps: approximate number of steps between two snapshots.
    """

    def __init__(self, registry: SessionRegistry, snapshot_steps: int) -> None:
        self._registry = registry
        self._snapshot_steps = snapshot_steps

    async def read(
        self, model: SessionModel, target: Target, tokens: array[int], *, every_step: bool, always: bool = False
    ) -> SessionReading:
        """Read tokens on a session. A repeated call returns the recorded outputs of the first attempt.

        Args:
            model: the model of the session.
            target: the session and the call.
            tokens: the tokens, at least one.
            every_step: whether the outputs of every token are returned, or of the last one only.
            always: read them even if the queue is full; for a part of what has been admitted before.

        Raises:
            SessionNotFoundError, BundleMismatchError: there is no such session of this model.
            SessionBusyError: another call continues the session.
            PositionMismatchError, RequestMismatchError: see `recorded_call`.
            QueueFullError, ServerDrainingError, ModelFailedError: nothing has been read.
        """
        try:
            async with self._registry.claimed(target.session_id) as session:
                model.check_owns(session)
                call = recorded_call(session, target)
                if call is None:
                    return await self._read(model, session, target, tokens, every_step=every_step, always=always)
        except SessionBusyError:
            call = finished_call(await self._registry.get_for(model, target.session_id), target)
            if call is None:
                raise
        return SessionReading(unpack_outputs(call.answer), call.end)

    async def _read(
        self,
        model: SessionModel,
        session: Session,
        target: Target,
        tokens: array[int],
        *,
        every_step: bool,
        always: bool,
    ) -> SessionReading:
        result = await read_tokens(
            session,
            model,
            tokens,
            every_step=every_step,
            needs_outputs=True,
            snapshot_steps=self._snapshot_steps,
            always=always,
        )
        start = session.position
        call = None
        if target.request_id:
            answer = pack_outputs(result.outputs)
            call = Call(target.request_id, target.fingerprint, start, len(tokens), 0, _READ, answer)
        await self._registry.write(_changes(session, tokens, call, result.snapshots), session)
        return SessionReading(result.outputs, start + len(tokens))


def _changes(session: Session, tokens: array[int], call: Call | None, snapshots: list[Snapshot]) -> list[Advance]:
    """Return the changes that a reading makes: one for its tokens and one for each snapshot; and one if it follows an
    answer that could be continued."""
    session_id, start, now = session.session_id, session.position, time.time()
    changes = [Advance(session_id, start, now, tokens, call)]
    left = Answers.of(session).left(start).change_of(session)
    if left is not None:
        changes.insert(0, Advance(session_id, start, now, call=left))
    for snapshot in snapshots:
        dropped = tuple(superseded_positions(session.snapshots, snapshot))
        changes.append(Advance(session_id, start + len(tokens), now, snapshot=snapshot, dropped=dropped))
    return [
        replace(change, version=session.version + number, fence=session.fence)
        for number, change in enumerate(changes, 1)
    ]
