"""What calls say about their session, and the requests of SessionService."""

from __future__ import annotations

from elman_protos import v1
from elman_server.inference.session_management import CreateSessionRequest, ForkSessionRequest
from elman_server.rpc.requests.fields import RequestFields
from elman_server.rpc.requests.inputs import parse_input
from elman_server.sessions import Target

RequestFields(v1.CreateSessionRequest, content={"session_id", "model", "text", "tokens", "seed"})
RequestFields(v1.ForkSessionRequest, content={"session_id", "new_session_id", "position", "seed"})
# These are passed on field by field, without a dataclass of their own.
RequestFields(v1.GetSessionRequest, content={"session_id", "with_tokens"})
RequestFields(v1.ListSessionsRequest, content={"page_size", "page_token"})
RequestFields(v1.DeleteSessionRequest, content={"session_id"})
RequestFields(v1.RewindSessionRequest, content={"session_id", "position"})
RequestFields(v1.ExportSessionRequest, content={"session_id"})
RequestFields(v1.ImportSessionRequest, content={"content", "session_id"})


def parse_target(call: v1.SessionCall, fingerprint: bytes) -> Target:
    """Return the session and the call of a request.

    Args:
        call: what the request says about them.
        fingerprint: of the request.
    """
    position = call.position if call.HasField("position") else None
    return Target(call.session_id, position, call.request_id, fingerprint)


def parse_create_session(request: v1.CreateSessionRequest) -> CreateSessionRequest:
    """Return the request to create a session."""
    return CreateSessionRequest(
        request.session_id,
        request.model,
        parse_input(request, request.WhichOneof("prompt")),
        request.seed if request.HasField("seed") else None,
    )


def parse_fork_session(request: v1.ForkSessionRequest) -> ForkSessionRequest:
    """Return the request to copy a session."""
    return ForkSessionRequest(
        request.session_id,
        request.new_session_id,
        request.position if request.HasField("position") else None,
        request.seed if request.HasField("seed") else None,
    )
