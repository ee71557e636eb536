"""What sessions require of a store.

A store keeps what it is given, in order, and returns what it has kept: a whole session or, if its end is damaged, what
precedes the damage; never anything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import structlog

from elman_server.errors import SessionError, StoreError, StoreUnavailableError
from elman_server.sessions.changes import Change
from elman_server.sessions.session import Session

STORE_FAILED = "the store of sessions has failed"

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a list of sessions shows of one; see `Session` for the fields."""

    session_id: str
    model: str
    digest: str
    seed: int
    created: float
    used: float
    position: int


@dataclass(frozen=True)
class Lease:
    """The exclusive right of a server to advance a session.

    Attributes:
        fence: greater with every lease. A change with a smaller fence than the latest is refused, so a server that has
            lost its lease without noticing can do no harm.
        version: version of the session in the store; None if only this server can have changed it.
    """

    fence: int
    version: int | None


class Store(Protocol):
    """Where sessions are kept. Thread-safe; its methods may block."""

    @property
    def shared(self) -> bool:
        """Whether other servers may use the store at the same time."""
        ...

    @property
    def blocks(self) -> bool:
        """Whether its methods take so long that they are called on another thread than the event loop's."""
        ...

    def apply(self, changes: Sequence[Change]) -> list[StoreError | None]:
        """Keep changes, in order.

        Returns:
            For each change None if it is kept, within the durability of the store, otherwise the reason why not.

        Raises:
            StoreError: none of them is kept.
        """
        ...

    def load(self, session_id: str) -> Session | None:
        """Return a session; None if there is none.

        Raises:
            SessionDamagedError: nothing of it is usable.
            StoreError: the store has failed.
        """
        ...

    def page(self, after: str, count: int) -> list[Summary]:
        """Return the first `count` sessions whose ids follow `after`, sorted by id."""
        ...

    def expired(self, before: float) -> list[str]:
        """Return the ids of the sessions that were last used before a time, in seconds since 1970."""
        ...

    def count(self, caller: str) -> int:
        """Return the number of sessions of a caller."""
        ...

    def versions(self, session_ids: Sequence[str]) -> list[int | None]:
        """Return the versions of sessions in the store; None for one that is not there."""
        ...

    def acquire(self, session_ids: Sequence[str]) -> list[Lease | SessionError]:
        """Acquire leases. A lease that is not renewed ends by itself, so a session does not wait for a dead server.

        Returns:
            For each the lease, or the error: SessionElsewhereError if another server holds it, or a StoreError.
        """
        ...

    def renew(self, fences: Mapping[str, int]) -> list[str]:
        """Renew leases, given by session id with their fences.

        Returns:
            The ids of the sessions whose leases are lost.
        """
        ...

    def release(self, fences: Sequence[tuple[str, int]]) -> list[StoreError | None]:
        """Release leases, given as session ids and fences.

        Returns:
            For each None, or the reason why it could not be released.
        """
        ...

    def check(self) -> None:
        """Find out whether it takes changes.

        Raises:
            StoreError: it does not.
        """
        ...

    def close(self) -> None:
        """Close connections and files. Nothing is lost."""
        ...


class SoleOwner:
    """The leases of a store that belongs to one server: every lease is granted."""

    shared = False

    def versions(self, session_ids: Sequence[str]) -> list[int | None]:
        return [None] * len(session_ids)

    def acquire(self, session_ids: Sequence[str]) -> list[Lease | SessionError]:
        return [Lease(0, None)] * len(session_ids)

    def renew(self, fences: Mapping[str, int]) -> list[str]:
        return []

    def release(self, fences: Sequence[tuple[str, int]]) -> list[StoreError | None]:
        return [None] * len(fences)


def summarize(session: Session) -> Summary:
    """Return the summary of a session."""
    return Summary(
        session.session_id,
        session.model,
        session.digest,
        session.seed,
        session.created,
        session.used,
        session.position,
    )


async def ask(store: Store, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a method of a store without blocking the event loop.

    Raises:
        SessionError: what the method raises; StoreUnavailableError for a defect.
    """
    with named_errors():
        return await asyncio.to_thread(method, *args, **kwargs) if store.blocks else method(*args, **kwargs)


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn what a store raises by a defect into an error that callers know.

    Raises:
        StoreUnavailableError: in place of whatever is no SessionError.
    """
    try:
        yield
    except SessionError:
        raise
    except Exception as error:
        _log.exception("store failed")
        raise StoreUnavailableError(STORE_FAILED) from error
