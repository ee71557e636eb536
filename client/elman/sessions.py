"""The client's side of sessions: what they are, the calls of SessionService, and how long a call is tried again.

async with Client() as client:
    session = await client.create_session("Once upon ")
    async for chunk in client.generate(session=session.session_id, patience=30):
        print(chunk.text, end="")
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import grpc

from elman.connection import Connection
from elman.errors import DeadlineExceededError, ElmanError, UnavailableError, expressible
from elman.inputs import Input, set_input
from elman_protos import v1

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds
_FULL = "QUEUE_FULL"  # What a server says that all clients come back to at once.
_SHORTEST_TIMEOUT = 0.001  # seconds; grpc reads 0 as no limit at all.


@dataclass(frozen=True)
class Session:
    """A session as the server holds it.

    Attributes:
        session_id: by which calls name it.
        model: the model's name.
        digest: of the model's bundle; a session stays with the bundle it began with.
        position: the number of tokens it holds, prompts and generated ones.
        seed: of calls that do not bring their own.
        create_time: when it was made, in UTC.
        use_time: when it was last used, in UTC.
        running: whether a call is under way on it.
    """

    session_id: str
    model: str
    digest: str
    position: int
    seed: int
    create_time: datetime
    use_time: datetime
    running: bool


@dataclass(frozen=True)
class SessionContent:
    """A session and what it holds.

    Attributes:
        session: the session.
        token_ids: its tokens.
        text: their text.
    """

    session: Session
    token_ids: tuple[int, ...]
    text: str


class SessionCalls(Connection):
    """The calls of SessionService.

    Where an id is wanted for a new session and none is given, it is made here and not by the server: a load balancer
    chooses the server by the id, which therefore has to stand in the metadata of the call that makes the session.
    """

    @cached_property
    def _sessions(self) -> v1.SessionServiceAsyncStub:
        return v1.SessionServiceStub(self._channel)

    async def create_session(
        self,
        prompt: Input | None = None,
        *,
        session_id: str = "",
        model: str = "",
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Make a session.

        Args:
            prompt: what it starts with, text or token ids; default nothing.
            session_id: 1 to 64 letters, digits, '.', '_' or '-'; default a random one.
            model: its name; may be empty where the server holds exactly one.
            seed: of calls that do not bring their own; default a random one.
            timeout: seconds the call may take.

        Raises:
            SessionExistsError: the id is taken.
        """
        session_id = session_id or new_id()
        with expressible():
            request = v1.CreateSessionRequest(session_id=session_id, model=model, seed=seed)
            if prompt is not None:
                set_input(request, prompt)
        return _session((await self._call(self._sessions.CreateSession, request, timeout, session_id)).session)

    async def get_session(self, session_id: str, *, timeout: float | None = None) -> Session:
        """One session.

        Raises:
            SessionNotFoundError: there is none of that id.
        """
        with expressible():
            request = v1.GetSessionRequest(session_id=session_id)
        return _session((await self._call(self._sessions.GetSession, request, timeout, session_id)).session)

    async def session_tokens(self, session_id: str, *, timeout: float | None = None) -> SessionContent:
        """One session with its tokens and their text.

        Raises:
            SessionNotFoundError: there is none of that id.
        """
        with expressible():
            request = v1.GetSessionRequest(session_id=session_id, with_tokens=True)
        response = await self._call(self._sessions.GetSession, request, timeout, session_id)
        return SessionContent(_session(response.session), tuple(response.tokens.ids), response.text)

    async def list_sessions(self, *, timeout: float | None = None) -> AsyncIterator[Session]:
        """All sessions, sorted by id. They come in pages; `timeout` is for each of them."""
        request = v1.ListSessionsRequest()
        while True:
            response = await self._call(self._sessions.ListSessions, request, timeout)
            for session in response.sessions:
                yield _session(session)
            if not response.next_page_token:
                return
            request = v1.ListSessionsRequest(page_token=response.next_page_token)

    async def delete_session(self, session_id: str, *, timeout: float | None = None) -> None:
        """Forget a session. A call that is under way on it fails.

        Raises:
            SessionNotFoundError: there is none of that id.
        """
        with expressible():
            request = v1.DeleteSessionRequest(session_id=session_id)
        await self._call(self._sessions.DeleteSession, request, timeout, session_id)

    async def fork_session(
        self,
        session_id: str,
        *,
        new_session_id: str = "",
        position: int | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Make a session that holds what another one holds; nothing is computed again.

        Args:
            session_id: the one to copy.
            new_session_id: the new one's id; default a random one.
            position: up to where it is copied; default all of it.
            seed: the new one's; default the same, so that equal calls then give equal texts.
            timeout: seconds the call may take.

        Raises:
            SessionNotFoundError: there is none to copy.
            SessionExistsError: the new id is taken.
        """
        new_session_id = new_session_id or new_id()
        with expressible():
            request = v1.ForkSessionRequest(
                session_id=session_id, new_session_id=new_session_id, position=position, seed=seed
            )
        return _session((await self._call(self._sessions.ForkSession, request, timeout, new_session_id)).session)

    async def rewind_session(self, session_id: str, position: int, *, timeout: float | None = None) -> Session:
        """Take a session back to an earlier position, as if what followed had never been.

        Raises:
            SessionNotFoundError: there is none of that id.
        """
        with expressible():
            request = v1.RewindSessionRequest(session_id=session_id, position=position)
        return _session((await self._call(self._sessions.RewindSession, request, timeout, session_id)).session)

    async def export_session(self, session_id: str, *, timeout: float | None = None) -> bytes:
        """A session as the content of a file, which `import_session` takes, here or on another server.

        Raises:
            SessionNotFoundError: there is none of that id.
        """
        with expressible():
            request = v1.ExportSessionRequest(session_id=session_id)
        return (await self._call(self._sessions.ExportSession, request, timeout, session_id)).content

    async def import_session(self, content: bytes, *, session_id: str = "", timeout: float | None = None) -> Session:
        """Make a session from what `export_session` gave.

        Args:
            content: the file's.
            session_id: the session's id; default the one it had.
            timeout: seconds the call may take.

        Raises:
            SessionExistsError: the id is taken.
        """
        with expressible():
            request = v1.ImportSessionRequest(content=content, session_id=session_id)
        session_id = session_id or _exported_id(content)
        return _session((await self._call(self._sessions.ImportSession, request, timeout, session_id)).session)


class Patience:
    """For how long a call that is broken off is tried again, within the time that the caller gave for the whole.

    Time runs from the first failure since the last progress, and not from the progress itself, so that a caller who
    reads slowly does not use it up.

    Args:
        seconds: how long; 0: the call is not tried again.
        timeout: seconds the whole may take.
    """

    def __init__(self, seconds: float, timeout: float | None) -> None:
        self._seconds = seconds
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._broken_since: float | None = None
        self._pause = _FIRST_PAUSE

    @property
    def timeout(self) -> float | None:
        """Seconds that the next try may take."""
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), _SHORTEST_TIMEOUT)

    def renew(self) -> None:
        """The call has made progress."""
        self._broken_since = None
        self._pause = _FIRST_PAUSE

    def pause(self, error: ElmanError) -> float:
        """Seconds to wait before the next try.

        Raises:
            ElmanError: the given one, where patience is at its end, or another try is of no use.
            DeadlineExceededError: the time for the whole is up.
        """
        if not (isinstance(error, UnavailableError) or error.reason == _FULL):
            raise error
        now = time.monotonic()
        if self._broken_since is None:
            self._broken_since = now
        left = self._broken_since + self._seconds - now
        if left <= 0:
            raise error
        if self._deadline is not None:
            if now >= self._deadline:
                message = f"the time for the call is up, and it was broken off: {error}"
                raise DeadlineExceededError(message, code=grpc.StatusCode.DEADLINE_EXCEEDED) from error
            left = min(left, self._deadline - now)
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return min(pause, left)


def session_call(session: str, position: int | None, request_id: str, patience: float) -> v1.SessionCall | None:
    """What a call on a session carries; None for a call on none. One that may be repeated has a name.

    Raises:
        ValueError: something is given that only a session has.
    """
    if session:
        return v1.SessionCall(
            session_id=session, position=position, request_id=request_id or (new_id() if patience > 0 else "")
        )
    if position is not None or request_id or patience > 0:
        raise ValueError("position, request_id and patience need a session")
    return None


def new_id() -> str:
    """A random id, of a session or of a call."""
    return secrets.token_hex(8)


def _exported_id(content: bytes) -> str:
    """The id in the header of an exported session; "" where none can be read, and the server says what is wrong."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        length = int.from_bytes(content[:8], "little")
        return str(json.loads(content[8 : 8 + length])["__metadata__"]["session_id"])
    return ""


def _session(session: v1.Session) -> Session:
    return Session(
        session_id=session.session_id,
        model=session.model,
        digest=session.digest,
        position=session.position,
        seed=session.seed,
        create_time=session.create_time.ToDatetime(UTC),
        use_time=session.use_time.ToDatetime(UTC),
        running=session.running,
    )
