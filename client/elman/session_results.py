"""The results of calls on sessions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from elman_protos import v1


@dataclass(frozen=True)
class Session:
    """A session of the server.

    Attributes:
        session_id: the id by which calls name it.
        model: the model's name.
        digest: the digest of the model's bundle; a session stays with the bundle it started with.
        position: the number of tokens it holds, from prompts and generated.
        seed: the seed of calls that set none.
        create_time: when it was created, in UTC.
        use_time: when it was last used, in UTC.
        running: whether a call runs on it.
        unknown_token_count: when it has just been created, the number of tokens of its prompt that are unknown to the
            vocabulary.
    """

    session_id: str
    model: str
    digest: str
    position: int
    seed: int
    create_time: datetime
    use_time: datetime
    running: bool
    unknown_token_count: int = 0


@dataclass(frozen=True)
class SessionContent:
    """A session with its tokens.

    Attributes:
        session: the session.
        token_ids: its tokens.
        text: the text of its tokens.
    """

    session: Session
    token_ids: tuple[int, ...]
    text: str


def session_of(session: v1.Session, unknown_token_count: int = 0) -> Session:
    return Session(
        session_id=session.session_id,
        model=session.model,
        digest=session.digest,
        position=session.position,
        seed=session.seed,
        create_time=session.create_time.ToDatetime(UTC),
        use_time=session.use_time.ToDatetime(UTC),
        running=session.running,
        unknown_token_count=unknown_token_count,
    )
