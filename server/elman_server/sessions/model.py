"""What sessions need to know of a model, and where a session resumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import Arrays
from elman_server.errors import BundleMismatchError
from elman_server.scheduling import Scheduler
from elman_server.sessions.session import Session
from elman_server.sessions.state_layout import StateLayout


@dataclass(frozen=True)
class SessionModel:
    """A model that sessions can keep the state of.

    Attributes:
        name: name of the model.
        digest: digest of its bundle.
        scheduler: runs it.
        layout: layout of its state.
        vocabulary_size: number of its tokens.
        generates: whether it generates. The state of a session is then at least one token behind, so that the token
            after the last one can be chosen anew.
    """

    name: str
    digest: str
    scheduler: Scheduler
    layout: StateLayout
    vocabulary_size: int
    generates: bool

    @property
    def lag(self) -> int:
        """The least number of tokens that the state of a session is behind."""
        return 1 if self.generates else 0

    def check_owns(self, session: Session) -> None:
        """Check that a session belongs to this model and bundle.

        Raises:
            BundleMismatchError: it belongs to another one.
        """
        if session.model != self.name or session.digest != self.digest:
            subject = f"session {session.session_id!r}"
            raise BundleMismatchError(subject, session.model, session.digest, self.name, self.digest)

    def resume_point(self, session: Session) -> ResumePoint:
        """Return where the next call on a session starts: at its latest usable snapshot."""
        snapshot = session.snapshot_before(session.position - self.lag)
        if snapshot is None or len(snapshot.state) != self.layout.size:
            return ResumePoint(0, None, np.array(session.tokens, np.int64))
        unread = np.array(session.tokens[snapshot.position :], np.int64)
        return ResumePoint(snapshot.position, self.layout.unpack(snapshot.state), unread)


@dataclass(frozen=True)
class ResumePoint:
    """Where the steps of a call start.

    Attributes:
        position: number of steps that led to the state.
        state: the state, by state input name; None for the model's initial state.
        unread: int64 [tokens], the tokens of the session after that position.
    """

    position: int
    state: Arrays | None
    unread: NDArray[np.int64]
