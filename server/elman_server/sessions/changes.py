"""The changes that sessions undergo.

    Create -> Advance* -> (Rewind -> Advance*)* -> Delete

A store keeps changes. A session in memory undergoes a change after the store has it, so memory is never ahead of the
store.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from elman_server.sessions.session import REMEMBERED_CALLS, TOKEN_BYTES, TOKEN_TYPE, Call, Session
from elman_server.sessions.snapshots import Snapshot


@dataclass(frozen=True, slots=True)
class Create:
    """A session is created with everything that it holds."""

    session: Session

    @property
    def session_id(self) -> str:
        return self.session.session_id


@dataclass(frozen=True, slots=True)
class Advance:
    """A session advances.

    Attributes:
        session_id: the session.
        start: its position before.
        used: time of the change, seconds since 1970.
        tokens: tokens to append; may be empty.
        call: the call that advances it, in its new state, if it has a request id.
        snapshot: a state to keep.
        dropped: positions of the snapshots that this one supersedes.
        version: version of the session after the change.
        fence: the fence of this server's lease.
    """

    session_id: str
    start: int
    used: float
    tokens: array[int] = field(default_factory=lambda: array(TOKEN_TYPE))
    call: Call | None = None
    snapshot: Snapshot | None = None
    dropped: tuple[int, ...] = ()
    version: int = 0
    fence: int = 0

    @property
    def end(self) -> int:
        """The position of the session after the change."""
        return self.start + len(self.tokens)

    @property
    def size(self) -> int:
        """Approximate bytes that it adds."""
        answer = 0 if self.call is None else len(self.call.answer)
        return TOKEN_BYTES * len(self.tokens) + (0 if self.snapshot is None else len(self.snapshot.state)) + answer

    def apply(self, session: Session) -> None:
        """Make the change to a session in memory."""
        session.version = self.version
        session.used = self.used
        session.tokens.extend(self.tokens)
        if self.snapshot is not None:
            gone = {*self.dropped, self.snapshot.position}
            kept = [snapshot for snapshot in session.snapshots if snapshot.position not in gone]
            session.snapshots = sorted([*kept, self.snapshot], key=lambda snapshot: snapshot.position)
        if self.call is not None:
            session.calls.pop(self.call.request_id, None)
            while len(session.calls) >= REMEMBERED_CALLS:
                del session.calls[next(iter(session.calls))]
            session.calls[self.call.request_id] = self.call


@dataclass(frozen=True, slots=True)
class Rewind:
    """A session goes back to an earlier position.

    Attributes:
        session_id: the session.
        position: the position.
        state_position: largest number of steps of the snapshots that stay.
        version: version of the session after the change.
        fence: the fence of this server's lease.
    """

    session_id: str
    position: int
    state_position: int
    version: int = 0
    fence: int = 0

    def apply(self, session: Session) -> None:
        """Make the change to a session in memory."""
        session.version = self.version
        session.tokens.truncate(self.position)
        session.snapshots = [snapshot for snapshot in session.snapshots if snapshot.position <= self.state_position]
        session.calls = {
            name: call for name, call in session.calls.items() if call.end <= self.position and call.outcome
        }


@dataclass(frozen=True, slots=True)
class Delete:
    """A session is deleted.

    Attributes:
        session_id: the session.
        fence: the fence of this server's lease.
    """

    session_id: str
    fence: int = 0


Change = Create | Advance | Rewind | Delete
