"""What sessions ask of a store, and the store that is the server's own memory.

A store keeps what it was given, in order, and gives back what it has kept: all of a session or, where the end of it is
damaged, what came before the damage; never anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from elman_server.errors import SessionError, StoreError
from elman_server.sessions.session import Change, Create, Delete, Session


@dataclass(frozen=True)
class Summary:
    """What a list of sessions says about one."""

    session_id: str
    model: str
    digest: str
    seed: int
    created: float
    used: float
    position: int


@dataclass(frozen=True)
class Lease:
    """That a server has a session: nobody else advances it meanwhile.

    Attributes:
        fence: grows with every lease. A change that comes under an older number than the latest is not kept, so that a
            server that has lost its lease without knowing can do no harm.
        version: the session's in the store; None where nobody but this server can have changed it.
    """

    fence: int
    version: int | None


class Store(Protocol):
    """Where sessions are kept. Its calls block; they may come from any thread."""

    @property
    def shared(self) -> bool:
        """Whether other servers may have it open, too."""
        ...

    @property
    def blocks(self) -> bool:
        """Whether its calls take long enough to be made on a thread of their own."""
        ...

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        """Keep changes, in order. What this returns without an error for is kept, as the store's durability has it.

        Returns:
            for each change why it is not kept, if it is not.

        Raises:
            StoreError: none of them is kept.
        """
        ...

    def load(self, session_id: str) -> Session | None:
        """A session, or None if there is none.

        Raises:
            SessionDamagedError: nothing of it is of use.
            StoreError: the store has failed.
        """
        ...

    def page(self, after: str, count: int) -> list[Summary]:
        """The first `count` sessions whose ids come after `after`, sorted by id."""
        ...

    def expired(self, before: float) -> list[str]:
        """The ids of sessions that were last used before a time."""
        ...

    def count(self, caller: str) -> int:
        """How many sessions a caller has."""
        ...

    def versions(self, session_ids: Sequence[str]) -> list[int | None]:
        """The versions of sessions in the store: whether they are still what they were. None where there is none."""
        ...

    def acquire(self, session_ids: Sequence[str]) -> list[Lease | SessionError]:
        """Have sessions to oneself. A lease ends by itself if it is not renewed, so that nobody waits for the dead.

        Returns:
            for each the lease, or a SessionElsewhereError: another server has it, or a StoreError.
        """
        ...

    def renew(self, fences: Mapping[str, int]) -> list[str]:
        """Prolong leases, by session id; the ids of those that are lost."""
        ...

    def release(self, fences: Sequence[tuple[str, int]]) -> list[StoreError | None]:
        """Let somebody else have them: session ids, and the fences under which this server had them.

        Returns:
            for each why it could not be done, if it could not.
        """
        ...

    def close(self) -> None:
        """Let go of what is open. Nothing is lost."""
        ...


class SoleOwner:
    """The leases of a store that one server has to itself."""

    shared = False

    def versions(self, session_ids: Sequence[str]) -> list[int | None]:
        return [None] * len(session_ids)

    def acquire(self, session_ids: Sequence[str]) -> list[Lease | SessionError]:
        return [Lease(0, None)] * len(session_ids)

    def renew(self, fences: Mapping[str, int]) -> list[str]:
        return []

    def release(self, fences: Sequence[tuple[str, int]]) -> list[StoreError | None]:
        return [None] * len(fences)


class MemoryStore(SoleOwner):
    """Keeps sessions in the server's memory, for as long as the server runs. It holds the very sessions that it was
    given, so that what they go through need not be done twice."""

    blocks = False

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        for change in changes:
            if isinstance(change, Create):
                self._sessions[change.session_id] = change.session
            elif isinstance(change, Delete):
                self._sessions.pop(change.session_id, None)
        return [None] * len(changes)

    def load(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def page(self, after: str, count: int) -> list[Summary]:
        ids = sorted(session_id for session_id in self._sessions if session_id > after)[:count]
        return [summary_of(self._sessions[session_id]) for session_id in ids]

    def expired(self, before: float) -> list[str]:
        return [session.session_id for session in self._sessions.values() if session.used < before]

    def count(self, caller: str) -> int:
        return sum(session.caller == caller for session in self._sessions.values())

    def close(self) -> None:
        pass


def summary_of(session: Session) -> Summary:
    return Summary(
        session.session_id,
        session.model,
        session.digest,
        session.seed,
        session.created,
        session.used,
        session.position,
    )
