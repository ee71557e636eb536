"""Sessions for the tests of stores."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace

from elman_server.sessions.changes import Advance, Change, Create, Rewind
from elman_server.sessions.session import TOKEN_TYPE, Call, Session, TokenLog
from elman_server.sessions.snapshots import Snapshot, superseded_positions
from elman_server.sessions.stores.sqlite import SqliteStore

STATE_BYTES = 40


def tokens_of(*ids: int) -> array[int]:
    return array(TOKEN_TYPE, ids)


def empty(session_id: str = "s", **changes: object) -> Session:
    session = Session(session_id, "model", "sha256:0", 7, "me", 1.0, 2.0)
    if isinstance(tokens := changes.get("tokens"), array):
        changes["tokens"] = TokenLog(tokens)
    return replace(session, **changes)  # type: ignore[arg-type]


def call_of(name: str, start: int, prompt: int, generated: int = 0, outcome: str = "") -> Call:
    return Call(name, b"f" * 16, start, prompt, generated, outcome, b"answer")


def apply_changes(store: SqliteStore, session: Session, *changes: Change) -> None:
    """Make changes in the store and to the session in memory."""
    assert store.apply(changes) == [None] * len(changes)
    for change in changes:
        assert isinstance(change, Advance | Rewind)
        change.apply(session)


def same(one: Session | None, other: Session) -> bool:
    return one is not None and replace(one, version=0) == replace(other, version=0)


def long_session(store: SqliteStore, steps: int = 3000) -> Session:
    """A session of several segments, snapshots and calls."""
    session = empty()
    store.apply([Create(session)])
    stream = random.Random(0)
    while session.position < steps:
        new = tokens_of(*(stream.randrange(1000) for _ in range(stream.randrange(1, 200))))
        call = call_of(f"call {session.position}", session.position, 1, len(new) - 1, "max_tokens")
        state = Snapshot(session.position + len(new) - 1, stream.randbytes(STATE_BYTES))
        dropped = tuple(superseded_positions(session.snapshots, state))
        apply_changes(store, session, Advance("s", session.position, 3.0, new, call, state, dropped))
    return session


def is_earlier(found: Session, whole: Session) -> bool:
    """Whether a session is a correct, possibly earlier version of another."""
    states = {snapshot.position: snapshot for snapshot in whole.snapshots}
    return (
        found.tokens == whole.tokens[: found.position]
        and all(states[snapshot.position] == snapshot for snapshot in found.snapshots)
        and all(whole.calls[name] == call for name, call in found.calls.items())
        and (found.seed, found.digest, found.model) == (whole.seed, whole.digest, whole.model)
    )
