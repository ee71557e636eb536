"""Sessions in Redis, with their leases."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

from elman_server.errors import SessionError
from elman_server.sessions.changes import Advance, Create, Rewind
from elman_server.sessions.session import Session, TokenLog
from elman_server.sessions.stores.interface import Lease
from elman_server.sessions.stores.redis import RedisStore


def empty(session_id: str = "s", **changes: object) -> Session:
    session = Session(session_id, "model", "sha256:0", 2**63 - 1, "me", 1.1, 2.2)
    if isinstance(tokens := changes.get("tokens"), array):
        changes["tokens"] = TokenLog(tokens)
    return replace(session, **changes)  # type: ignore[arg-type]


def created(store: RedisStore, session_id: str = "s", **changes: object) -> Session:
    """A new session whose lease this store holds."""
    session = empty(session_id, **changes)
    assert store.apply([Create(session)]) == [None]
    return leased(store, session)


def acquired(store: RedisStore, session_id: str) -> Lease:
    (lease,) = store.acquire([session_id])
    if isinstance(lease, SessionError):
        raise lease
    return lease


def leased(store: RedisStore, session: Session) -> Session:
    lease = acquired(store, session.session_id)
    assert lease.version == session.version
    session.fence = lease.fence
    return session


def stamped(session: Session, *changes: Advance | Rewind) -> list[Any]:
    """Changes with the next versions and the fence of a session."""
    return [
        replace(change, version=session.version + number, fence=session.fence)
        for number, change in enumerate(changes, 1)
    ]
