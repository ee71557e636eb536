"""The calls of SessionService: create, read, fork, rewind, export and delete sessions.

async with Client() as client:
    session = await client.create_session("Once upon ")
    async for chunk in client.generate(session=session.session_id, patience=30):
        print(chunk.text, end="")
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

from elman.connection import Connection
from elman.errors import refused_arguments
from elman.inputs import Input, set_input
from elman.session_results import Session, SessionContent, session_of
from elman.session_retries import new_id
from elman_protos import v1


class SessionCalls(Connection):
    """The calls of SessionService.

    The client, not the server, makes the random id of a new session: a load balancer selects the server by the id,
    which must therefore be in the metadata of the call that creates the session.
    """

    @property
    def _sessions(self) -> v1.SessionServiceAsyncStub:
        return self._channel().sessions

    async def create_session(
        self,
        prompt: Input | None = None,
        *,
        session_id: str = "",
        model: str = "",
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Create a session.

        Args:
            prompt: the text or token ids that it starts with; default none.
            session_id: 1 to 64 letters, digits, '.', '_' or '-'; default a random id.
            model: the model's name; optional if the server has only one.
            seed: the seed of calls that set none; default a random one.
            timeout: the time limit in seconds.

        Raises:
            SessionExistsError: there is a session with this id already.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        session_id = session_id or new_id()
        with refused_arguments():
            request = v1.CreateSessionRequest(session_id=session_id, model=model, seed=seed)
            if prompt is not None:
                set_input(request, prompt)
        response = await self._call(self._sessions.CreateSession, request, timeout, session_id)
        return session_of(response.session, response.unknown_token_count)

    async def get_session(self, session_id: str, *, timeout: float | None = None) -> Session:
        """Get a session.

        Args:
            session_id: the session's id.
            timeout: the time limit in seconds.

        Raises:
            SessionNotFoundError: there is no such session.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        with refused_arguments():
            request = v1.GetSessionRequest(session_id=session_id)
        return session_of((await self._call(self._sessions.GetSession, request, timeout, session_id)).session)

    async def session_tokens(self, session_id: str, *, timeout: float | None = None) -> SessionContent:
        """Get a session with its tokens and their text.

        Args:
            session_id: the session's id.
            timeout: the time limit in seconds.

        Raises:
            SessionNotFoundError: there is no such session.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        with refused_arguments():
            request = v1.GetSessionRequest(session_id=session_id, with_tokens=True)
        response = await self._call(self._sessions.GetSession, request, timeout, session_id)
        return SessionContent(session_of(response.session), tuple(response.tokens.ids), response.text)

    async def list_sessions(self, *, timeout: float | None = None) -> AsyncIterator[Session]:
        """List all sessions.

        Args:
            timeout: the time limit for each page in seconds.

        Yields:
            The sessions, sorted by id.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        request = v1.ListSessionsRequest()
        while True:
            response = await self._call(self._sessions.ListSessions, request, timeout)
            for session in response.sessions:
                yield session_of(session)
            if not response.next_page_token:
                return
            request = v1.ListSessionsRequest(page_token=response.next_page_token)

    async def delete_session(self, session_id: str, *, timeout: float | None = None) -> None:
        """Delete a session. A call that runs on it fails.

        Args:
            session_id: the session's id.
            timeout: the time limit in seconds.

        Raises:
            SessionNotFoundError: there is no such session.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        with refused_arguments():
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
        """Create a session with the content of another one; nothing is computed again.

        Args:
            session_id: the session to copy.
            new_session_id: the id of the new session; default a random one.
            position: the position up to which it is copied; default all of it.
            seed: the seed of the new session; by default that of the old one, so equal calls give equal texts.
            timeout: the time limit in seconds.

        Returns:
            The new session.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionExistsError: there is a session with the new id already.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        new_session_id = new_session_id or new_id()
        with refused_arguments():
            request = v1.ForkSessionRequest(
                session_id=session_id, new_session_id=new_session_id, position=position, seed=seed
            )
        return session_of((await self._call(self._sessions.ForkSession, request, timeout, new_session_id)).session)

    async def rewind_session(self, session_id: str, position: int, *, timeout: float | None = None) -> Session:
        """Rewind a session to an earlier position; later tokens are deleted.

        Args:
            session_id: the session's id.
            position: the number of tokens to keep.
            timeout: the time limit in seconds.

        Raises:
            SessionNotFoundError: there is no such session.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        with refused_arguments():
            request = v1.RewindSessionRequest(session_id=session_id, position=position)
        return session_of((await self._call(self._sessions.RewindSession, request, timeout, session_id)).session)

    async def export_session(self, session_id: str, *, timeout: float | None = None) -> bytes:
        """Export a session for `import_session`, on this server or another one.

        Args:
            session_id: the session's id.
            timeout: the time limit in seconds.

        Returns:
            The content of a file.

        Raises:
            SessionNotFoundError: there is no such session.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        with refused_arguments():
            request = v1.ExportSessionRequest(session_id=session_id)
        return (await self._call(self._sessions.ExportSession, request, timeout, session_id)).content

    async def import_session(self, content: bytes, *, session_id: str = "", timeout: float | None = None) -> Session:
        """Create a session from the result of `export_session`.

        Args:
            content: the content of the file.
            session_id: the id of the session; by default the one it had.
            timeout: the time limit in seconds.

        Raises:
            SessionExistsError: there is a session with this id already.
            ElmanError: the call failed for another reason; see `elman.errors`.
        """
        with refused_arguments():
            request = v1.ImportSessionRequest(content=content, session_id=session_id)
        session_id = session_id or _exported_id(content)
        return session_of((await self._call(self._sessions.ImportSession, request, timeout, session_id)).session)


def _exported_id(content: bytes) -> str:
    """The id in the header of an exported session; "" if it cannot be read, and the server reports what is wrong."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        length = int.from_bytes(content[:8], "little")
        return str(json.loads(content[8 : 8 + length])["__metadata__"]["session_id"])
    return ""
