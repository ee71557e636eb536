"""The use cases that create, show, copy, rewind, move and delete sessions."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from elman_server.errors import InvalidFieldError, ResponseTooLargeError
from elman_server.inference.input_forms import Input
from elman_server.inference.inputs import read_tokens
from elman_server.inference.limits import Limits
from elman_server.inference.model import ServedModel
from elman_server.inference.offload import offload
from elman_server.inference.resources import Resources
from elman_server.inference.session_targets import check_session_id
from elman_server.sessions import TOKEN_BYTES, TOKEN_TYPE, Session, SessionModel, Summary, read_file, write_file

DEFAULT_PAGE, MAX_PAGE = 100, 1000
_LONG_FILE = 2**16  # bytes: more take milliseconds, too long to block the event loop
_IMPORT_BYTES = 128  # of a request to import, beside the file: at most an id and some tags


@dataclass(frozen=True)
class SessionView:
    """A session as callers see it.

    Attributes:
        session: the session, or a summary of it.
        running: whether a call is running on it, on this server.
    """

    session: Session | Summary
    running: bool


@dataclass(frozen=True)
class SessionPage:
    """A page of a list of sessions.

    Attributes:
        sessions: the sessions.
        next_page_token: where the next page starts; "" if there is none.
    """

    sessions: Sequence[SessionView]
    next_page_token: str


@dataclass(frozen=True)
class CreateSessionRequest:
    """A request to create a session.

    Attributes:
        session_id: "" for a random id.
        model: name of the model; "" for the only one that suits.
        prompt: what the session holds at first; None for nothing.
        seed: of calls that bring none; None for a random one.
    """

    session_id: str = ""
    model: str = ""
    prompt: Input | None = None
    seed: int | None = None


async def create_session(resources: Resources, request: CreateSessionRequest, caller: str) -> tuple[SessionView, int]:
    """Create a session; its prompt is read. Also return how many of its tokens the vocabulary does not have.

    Args:
        resources: what the server has.
        request: the request.
        caller: identity of the caller; becomes the owner.

    Raises:
        DomainError: why it cannot be created.
    """
    model = resources.models.that_keeps_sessions(request.model)
    kept = model.for_sessions
    prompt = await read_tokens(request.prompt, model, resources.limits)
    _check_new_id(request.session_id, "session_id")
    begin = model.begin_tokens if len(prompt.ids) else ()
    tokens = array(TOKEN_TYPE, [*begin, *prompt.ids.tolist()])
    session = await resources.sessions.create(kept, request.session_id, tokens, seed=request.seed, caller=caller)
    return _view(resources, session), prompt.unknown_count


async def get_session(resources: Resources, session_id: str) -> SessionView:
    """Return a session.

    Raises:
        DomainError: there is none, or it cannot be read.
    """
    check_session_id(session_id, "session_id")
    return _view(resources, await resources.sessions.get(session_id))


async def get_session_text(resources: Resources, session_id: str) -> tuple[SessionView, array[int], str]:
    """Return a session with its tokens and their text.

    Raises:
        DomainError: there is none, or the server does not hold its model.
    """
    check_session_id(session_id, "session_id")
    session = await resources.sessions.get(session_id)
    decoder, tokens = _model_of(resources, session).vocabulary.decoder(), session.tokens[:]
    text = await offload(len(tokens), lambda: decoder.decode(tokens, final=True))
    return _view(resources, session), tokens, text


async def list_sessions(resources: Resources, page_size: int, page_token: str) -> SessionPage:
    """Return a page of all sessions, sorted by id.

    Args:
        resources: what the server has.
        page_size: number of sessions; 0 for the default.
        page_token: of the page before; "" for the first page.

    Raises:
        DomainError: the page is too large, or the store does not answer.
    """
    size = page_size or DEFAULT_PAGE
    if not 1 <= size <= MAX_PAGE:
        raise InvalidFieldError("page_size", size, f"must be 1 to {MAX_PAGE}")
    found = await resources.sessions.page(page_token, size + 1)
    following = found[size - 1].session_id if len(found) > size else ""
    return SessionPage([_view(resources, summary) for summary in found[:size]], following)


async def delete_session(resources: Resources, session_id: str) -> None:
    """Delete a session; a generation on it ends.

    Raises:
        DomainError: there is none, or it cannot be deleted now.
    """
    check_session_id(session_id, "session_id")
    await resources.sessions.delete(session_id)


@dataclass(frozen=True)
class ForkSessionRequest:
    """A request to copy a session.

    Attributes:
        session_id: the session.
        new_session_id: id of the copy; "" for a random one.
        position: where the copy ends; None for the end.
        seed: of the copy; None for that of the session.
    """

    session_id: str = ""
    new_session_id: str = ""
    position: int | None = None
    seed: int | None = None


async def fork_session(resources: Resources, request: ForkSessionRequest, caller: str) -> SessionView:
    """Create a session that holds what another one holds; nothing is computed again.

    Args:
        resources: what the server has.
        request: the request.
        caller: identity of the caller; becomes the owner.

    Raises:
        DomainError: why it cannot be created.
    """
    check_session_id(request.session_id, "session_id")
    source = await resources.sessions.get(request.session_id)
    model = _model_of(resources, source).for_sessions
    _check_new_id(request.new_session_id, "new_session_id")
    session = await resources.sessions.fork(
        source.session_id,
        model,
        request.new_session_id,
        position=request.position,
        seed=request.seed,
        caller=caller,
    )
    return _view(resources, session)


async def rewind_session(resources: Resources, session_id: str, position: int | None) -> SessionView:
    """Take a session back to a position.

    Args:
        resources: what the server has.
        session_id: the session.
        position: the position; needed.

    Raises:
        DomainError: why it cannot be rewound.
    """
    check_session_id(session_id, "session_id")
    session = await resources.sessions.get(session_id)
    if position is None:
        raise InvalidFieldError("position", "none", "the position to rewind to is needed")
    model = _model_of(resources, session).for_sessions
    return _view(resources, await resources.sessions.rewind(session.session_id, model, position))


async def export_session(resources: Resources, session_id: str) -> bytes:
    """Return a session as a file, which a server with the same bundle and settings imports.

    Raises:
        DomainError: there is none, the server does not hold its model, or the file could not be imported.
    """
    check_session_id(session_id, "session_id")
    session = await resources.sessions.get(session_id)
    model = _model_of(resources, session).for_sessions
    frozen = await resources.sessions.frozen(session.session_id, model)
    _check_importable(frozen, model, resources.limits)
    content = await offload(frozen.size, lambda: write_file(frozen, model.resume_point(frozen)), _LONG_FILE)
    _check_file_size(session_id, len(content), resources.limits)
    return content


def _check_importable(session: Session, model: SessionModel, limits: Limits) -> None:
    """Refuse what `import_session` would refuse.

    Raises:
        InvalidFieldError: the state is too far behind.
        ResponseTooLargeError: the file would be too large.
    """
    usable = [snapshot.position for snapshot in session.snapshots if len(snapshot.state) == model.layout.size]
    behind = session.position - model.lag - max(usable, default=0)
    if behind > limits.input_tokens:
        got = f"{session.session_id!r}, whose state is {behind} tokens behind"
        rule = f"in a file it may be {limits.input_tokens} tokens behind, which the next call has to read again"
        remedy = "Generate a token on the session, or on a fork of it, and export that"
        raise InvalidFieldError("session_id", got, rule, remedy)
    _check_file_size(session.session_id, TOKEN_BYTES * session.position, limits)


def _check_file_size(session_id: str, size: int, limits: Limits) -> None:
    limit = limits.message_bytes - _IMPORT_BYTES
    if size > limit:
        got = f"{session_id!r}, whose file has {size} bytes or more"
        rule = f"a server with the same --message-limit imports files of {limit} bytes at most"
        remedy = "Raise --message-limit of both servers"
        raise ResponseTooLargeError("session_id", got, rule, remedy, size=size, limit=limit)


async def import_session(resources: Resources, content: bytes, session_id: str, caller: str) -> SessionView:
    """Create a session from a file.

    Args:
        resources: what the server has.
        content: the file.
        session_id: id of the session; "" for the one in the file.
        caller: identity of the caller; becomes the owner.

    Raises:
        DomainError: why it cannot be created.
    """
    file = await offload(len(content), lambda: read_file(content), _LONG_FILE)
    model = resources.models.named(file.model, "content").for_sessions
    _check_new_id(session_id, "session_id")
    _check_new_id(file.session_id, "content")
    longest = resources.limits.input_tokens
    session = await resources.sessions.restore(file, model, session_id, longest=longest, caller=caller)
    return _view(resources, session)


def _check_new_id(session_id: str, field: str) -> None:
    if session_id:
        check_session_id(session_id, field)


def _model_of(resources: Resources, session: Session) -> ServedModel:
    return resources.models.named(session.model, "session_id")


def _view(resources: Resources, session: Session | Summary) -> SessionView:
    return SessionView(session, resources.sessions.is_running(session.session_id))
