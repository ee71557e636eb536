"""The calls of elman.v1.SessionService."""

from __future__ import annotations

from array import array

from google.protobuf.timestamp_pb2 import Timestamp

from elman_protos import v1
from elman_server.errors import InvalidFieldError
from elman_server.rpc.callers import Context, caller_of
from elman_server.rpc.models import Models, ServedModel
from elman_server.rpc.validation import (
    Limits,
    check_session_id,
    check_size,
    new_session_id,
    requested_seed,
    session_prompt_ids,
)
from elman_server.sessions import TOKEN_TYPE, Session, Sessions, Summary, read_file

_PAGE, _LARGEST_PAGE = 100, 1000


class SessionServicer(v1.SessionServiceServicer):
    """Serves sessions.

    Args:
        models: what they are sessions of.
        sessions: what there is.
        limits: what one request may ask for.
    """

    def __init__(self, models: Models, sessions: Sessions, limits: Limits) -> None:
        self._models = models
        self._sessions = sessions
        self._limits = limits

    async def CreateSession(self, request: v1.CreateSessionRequest, context: Context) -> v1.CreateSessionResponse:
        check_size(request, self._limits)
        model = self._models.that_keeps_sessions(request.model)
        kept = model.for_sessions
        ids = await session_prompt_ids(request, model, self._limits)
        session = await self._sessions.create(
            kept,
            new_session_id(request.session_id, "session_id"),
            array(TOKEN_TYPE, ids.tolist()),
            seed=requested_seed(request),
            caller=caller_of(context),
        )
        return v1.CreateSessionResponse(session=self._shown(session))

    async def GetSession(self, request: v1.GetSessionRequest, context: Context) -> v1.GetSessionResponse:
        session = await self._sessions.get(_needed(request.session_id))
        response = v1.GetSessionResponse(session=self._shown(session))
        if request.with_tokens:
            response.tokens.ids.extend(session.tokens)
            response.text = self._model_of(session).vocabulary.decoder().decode(session.tokens, final=True)
        return response

    async def ListSessions(self, request: v1.ListSessionsRequest, context: Context) -> v1.ListSessionsResponse:
        size = request.page_size or _PAGE
        if not 1 <= size <= _LARGEST_PAGE:
            raise InvalidFieldError("page_size", size, f"must be 1 to {_LARGEST_PAGE}")
        found = await self._sessions.page(request.page_token, size + 1)
        following = found[size - 1].session_id if len(found) > size else ""
        return v1.ListSessionsResponse(
            sessions=[self._shown(summary) for summary in found[:size]], next_page_token=following
        )

    async def DeleteSession(self, request: v1.DeleteSessionRequest, context: Context) -> v1.DeleteSessionResponse:
        await self._sessions.delete(_needed(request.session_id))
        return v1.DeleteSessionResponse()

    async def ForkSession(self, request: v1.ForkSessionRequest, context: Context) -> v1.ForkSessionResponse:
        source = await self._sessions.get(_needed(request.session_id))
        session = await self._sessions.fork(
            source.session_id,
            self._model_of(source).for_sessions,
            new_session_id(request.new_session_id, "new_session_id"),
            position=request.position if request.HasField("position") else None,
            seed=requested_seed(request),
            caller=caller_of(context),
        )
        return v1.ForkSessionResponse(session=self._shown(session))

    async def RewindSession(self, request: v1.RewindSessionRequest, context: Context) -> v1.RewindSessionResponse:
        session = await self._sessions.get(_needed(request.session_id))
        if not request.HasField("position"):
            raise InvalidFieldError("position", "none", "the position to rewind to is needed")
        model = self._model_of(session).for_sessions
        return v1.RewindSessionResponse(
            session=self._shown(await self._sessions.rewind(session.session_id, model, request.position))
        )

    async def ExportSession(self, request: v1.ExportSessionRequest, context: Context) -> v1.ExportSessionResponse:
        session = await self._sessions.get(_needed(request.session_id))
        content = await self._sessions.export(session.session_id, self._model_of(session).for_sessions)
        return v1.ExportSessionResponse(content=content)

    async def ImportSession(self, request: v1.ImportSessionRequest, context: Context) -> v1.ImportSessionResponse:
        check_size(request, self._limits)
        file = read_file(request.content)
        model = self._models.named(file.model, "content").for_sessions
        session_id = new_session_id(request.session_id, "session_id")
        new_session_id(file.session_id, "content")
        longest, caller = self._limits.input_tokens, caller_of(context)
        session = await self._sessions.restore(file, model, session_id, longest=longest, caller=caller)
        return v1.ImportSessionResponse(session=self._shown(session))

    def _model_of(self, session: Session) -> ServedModel:
        return self._models.named(session.model, "session_id")

    def _shown(self, session: Session | Summary) -> v1.Session:
        return v1.Session(
            session_id=session.session_id,
            model=session.model,
            digest=session.digest,
            position=session.position,
            seed=session.seed,
            create_time=_timestamp(session.created),
            use_time=_timestamp(session.used),
            running=self._sessions.is_running(session.session_id),
        )


def _needed(session_id: str) -> str:
    if not session_id:
        raise InvalidFieldError("session_id", "none", "an id is needed")
    check_session_id(session_id, "session_id")
    return session_id


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(int(seconds * 1e6))
    return timestamp
