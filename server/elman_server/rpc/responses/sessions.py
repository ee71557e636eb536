"""What a server says about sessions."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from elman_protos import v1
from elman_server.inference.session_management import SessionView


def session_message(view: SessionView) -> v1.Session:
    """Return a session as callers see it."""
    session = view.session
    return v1.Session(
        session_id=session.session_id,
        model=session.model,
        digest=session.digest,
        position=session.position,
        seed=session.seed,
        create_time=_timestamp(session.created),
        use_time=_timestamp(session.used),
        running=view.running,
    )


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(int(seconds * 1e6))
    return timestamp
