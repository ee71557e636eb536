"""The calls of elman.v1.SessionService."""

from __future__ import annotations

from elman_protos import v1
from elman_server.inference import session_management as management
from elman_server.inference.resources import Resources
from elman_server.rpc.requests.sessions import parse_create_session, parse_fork_session
from elman_server.rpc.responses.sessions import session_message
from elman_server.rpc.transport.callers import Context, caller


class SessionServicer(v1.SessionServiceServicer):
    """Creates, shows, copies, rewinds, moves and deletes sessions.

    Args:
        resources: what the server has.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    async def CreateSession(self, request: v1.CreateSessionRequest, context: Context) -> v1.CreateSessionResponse:
        parsed = parse_create_session(request)
        created, unknown = await management.create_session(self._resources, parsed, caller.get())
        return v1.CreateSessionResponse(session=session_message(created), unknown_token_count=unknown)

    async def GetSession(self, request: v1.GetSessionRequest, context: Context) -> v1.GetSessionResponse:
        if not request.with_tokens:
            view = await management.get_session(self._resources, request.session_id)
            return v1.GetSessionResponse(session=session_message(view))
        view, ids, text = await management.get_session_text(self._resources, request.session_id)
        tokens = v1.TokenSequence(ids=ids)
        return v1.GetSessionResponse(session=session_message(view), tokens=tokens, text=text)

    async def ListSessions(self, request: v1.ListSessionsRequest, context: Context) -> v1.ListSessionsResponse:
        page = await management.list_sessions(self._resources, request.page_size, request.page_token)
        return v1.ListSessionsResponse(
            sessions=map(session_message, page.sessions), next_page_token=page.next_page_token
        )

    async def DeleteSession(self, request: v1.DeleteSessionRequest, context: Context) -> v1.DeleteSessionResponse:
        await management.delete_session(self._resources, request.session_id)
        return v1.DeleteSessionResponse()

    async def ForkSession(self, request: v1.ForkSessionRequest, context: Context) -> v1.ForkSessionResponse:
        parsed = parse_fork_session(request)
        forked = await management.fork_session(self._resources, parsed, caller.get())
        return v1.ForkSessionResponse(session=session_message(forked))

    async def RewindSession(self, request: v1.RewindSessionRequest, context: Context) -> v1.RewindSessionResponse:
        position = request.position if request.HasField("position") else None
        rewound = await management.rewind_session(self._resources, request.session_id, position)
        return v1.RewindSessionResponse(session=session_message(rewound))

    async def ExportSession(self, request: v1.ExportSessionRequest, context: Context) -> v1.ExportSessionResponse:
        return v1.ExportSessionResponse(content=await management.export_session(self._resources, request.session_id))

    async def ImportSession(self, request: v1.ImportSessionRequest, context: Context) -> v1.ImportSessionResponse:
        identity = caller.get()
        imported = await management.import_session(self._resources, request.content, request.session_id, identity)
        return v1.ImportSessionResponse(session=session_message(imported))
