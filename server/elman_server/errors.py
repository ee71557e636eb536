"""All domain errors of the server: what can be wrong with a request, a session, a store, a model or the server itself.

    DomainError                     message for people, metadata for programs
      InvalidFieldError             a field of the request is at fault
      SessionError                  a session cannot be used; the other sessions are not affected
        StoreError                  the store of sessions has failed
      StartError                    the server cannot start; never reaches a client

Every text reads `FIELD: got VALUE; RULE. REMEDY`. How an error looks on a wire is decided by each door: for gRPC by the
table in `elman_server.rpc.transport.statuses`. An exception of any other class is a defect of the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

_LISTED_NAMES = 10


class DomainError(Exception):
    """An error that a caller of the server can understand and act on.

    Args:
        message: the text.
        facts: what a program can use, such as the limit that was exceeded.

    Attributes:
        metadata: the facts as text.
    """

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.metadata = {name: str(value) for name, value in facts.items()}


# Requests


class InvalidFieldError(DomainError):
    """A field of the request is missing, out of range, or does not fit the other fields.

    Args:
        field: path of the field in the request, such as "sampling.temperature".
        got: the value, shortened where it can be long.
        rule: what is allowed.
        remedy: what to do instead, where the rule does not say it.
        facts: see `DomainError`.
    """

    def __init__(self, field: str, got: object, rule: str, remedy: str = "", **facts: object) -> None:
        self.field = field
        self.description = f"got {got}; {rule}" + (f". {remedy}" if remedy else "")
        super().__init__(f"{field}: {self.description}", **facts)


class ModelNotFoundError(InvalidFieldError):
    """The server holds no model of that name."""


class ModelUnsuitableError(InvalidFieldError):
    """The server holds the model, but the model does not support the call."""


class InputTooLongError(InvalidFieldError):
    """An input has more steps, positions or nodes than allowed."""


class ResponseTooLargeError(InvalidFieldError):
    """The response would have more bytes than one message may have."""


class ConstraintError(InvalidFieldError):
    """An expression that cannot constrain the output of the model.

    Args:
        problem: what is wrong.
        position: index of the character in the expression where it goes wrong; None if that is unknown.
    """

    def __init__(self, problem: str, position: int | None = None) -> None:
        place = "" if position is None else f" (at character {position})"
        super().__init__("constraint", "an invalid expression", f"{problem}{place}")
        self.problem = problem
        self.position = position


class EmptyPromptError(InvalidFieldError):
    """Neither the session nor the prompt holds a token to continue."""

    def __init__(self, session_id: str) -> None:
        rule = f"session {session_id!r} is empty, so there is nothing to continue"
        super().__init__("text", "an empty prompt", rule, "Give a prompt of one token or more")


class SessionFileError(InvalidFieldError):
    """What is to be imported is not an exported session, or is damaged."""

    def __init__(self, got: object, rule: str) -> None:
        super().__init__("content", got, rule)


class MessageTooLargeError(DomainError):
    """A request message has more bytes than allowed."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"message: got {size} bytes; at most {limit} are allowed. Split the request, or raise --message-limit",
            size=size,
            limit=limit,
        )


class TooManyFieldsError(DomainError):
    """A request message has more fields than allowed, those of its parts included."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"message: got more than {limit} fields, those of its parts included; at most {limit} are allowed. "
            "Split the request",
            limit=limit,
        )


class MalformedMessageError(DomainError):
    """A request message is not what its protocol buffer says.

    Args:
        size: the number of its bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(
            f"message: got {size} bytes that cannot be parsed; must be a serialized message of the method's type, with "
            "texts in UTF-8. Generate the client from the proto files of this server",
            size=size,
        )


class QueueFullError(DomainError):
    """The server accepts no more work of this kind at the moment.

    Args:
        kind: what there is too much of, in the singular.
        limit: how many of it are accepted.
    """

    def __init__(self, kind: str, limit: int) -> None:
        super().__init__(f"queue: got one more {kind}; at most {limit} are accepted. Try again later", limit=limit)


class ConstraintMemoryError(DomainError):
    """The constraints of running requests take as much memory as they may.

    Args:
        limit: the largest number of bytes.
    """

    def __init__(self, limit: int) -> None:
        mebibytes = limit >> 20
        super().__init__(
            f"constraint: got one more; those in use take {mebibytes} MiB, which is the limit. Use a constraint that "
            "another request uses, a smaller one, or try again later",
            limit=limit,
        )


class ClientTooSlowError(DomainError):
    """The client has not read a message in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"response: got no read for {seconds:g} seconds; the call has been ended. Read faster", seconds=seconds
        )


class ClientIdleError(DomainError):
    """Neither side of a stream of requests has sent anything for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"requests: got none for {seconds:g} seconds, in which nothing was answered either; the call has been "
            "ended. Open a new one when there is something to send",
            seconds=seconds,
        )


class ServerDrainingError(DomainError):
    """The server is shutting down; a retry reaches another server, or this one after its restart."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; it accepts no more work. Try again later or elsewhere")


class ModelFailedError(DomainError):
    """The model failed on this input; other inputs are not affected."""


class EngineError(DomainError):
    """A step failed. The state of every row is what it was before the step."""


# Sessions


class SessionError(DomainError):
    """A session cannot be used as requested; the other sessions are not affected."""


class SessionNotFoundError(SessionError):
    """There is no session with that id."""

    def __init__(self, session_id: str, rule: str = "there is no such session") -> None:
        remedy = "It may have been deleted or have expired: create it first"
        super().__init__(f"session_id: got {session_id!r}; {rule}. {remedy}")


class SessionExistsError(SessionError):
    """There is a session with that id already."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session_id: got {session_id!r}; a session with this id exists. Choose another id or delete that session"
        )


class SessionConflictError(SessionError):
    """The session is not in the state that the call expects.

    Args:
        message: the text.
        position: position of the session.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message, position=position)
        self.position = position


class PositionMismatchError(SessionConflictError):
    """The session is at another position, or does not reach the requested one."""


class SessionBusyError(SessionConflictError):
    """Another call is running on the session.

    Args:
        session_id: the session.
        position: its position.
        elsewhere: whether another server runs the call.
    """

    def __init__(self, session_id: str, position: int, *, elsewhere: bool = False) -> None:
        where = "on another server" if elsewhere else "on this session"
        super().__init__(
            f"session_id: got {session_id!r}; a call is running {where} and has reached position {position}. "
            "Wait until it has finished",
            position,
        )


class RequestMismatchError(SessionError):
    """The request_id belongs to another request on the same session."""

    def __init__(self, session_id: str, request_id: str) -> None:
        super().__init__(
            f"session.request_id: got {request_id!r}; a different request on session {session_id!r} has used it. "
            "Choose a new request_id for a new request"
        )


class BundleMismatchError(SessionError):
    """A session belongs to another bundle than the one that the server holds.

    Args:
        subject: the session, or the file of one.
        model: name of the session's model.
        digest: digest of its bundle.
        served_model: name of the model that is to continue it.
        served_digest: digest of its bundle.
    """

    def __init__(self, subject: str, model: str, digest: str, served_model: str, served_digest: str) -> None:
        super().__init__(
            f"{subject}: got a state of {model!r} {digest}; this server holds {served_model!r} {served_digest}, and a "
            "state is valid for its own bundle only. Serve that bundle, or create a new session"
        )


class SessionDamagedError(SessionError):
    """The record of a session in the store cannot be used."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session_id: got {session_id!r}; its record in the store is damaged. "
            "Delete the session, or restore the store from a backup"
        )


class SessionLimitError(SessionError):
    """The caller has as many sessions as allowed."""

    def __init__(self, caller: str, limit: int) -> None:
        super().__init__(
            f"session_id: got one more session of {caller!r}; a caller may have at most {limit}. Delete one first"
        )


class SessionElsewhereError(SessionError):
    """Another server holds the lease of the session.

    Attributes:
        seconds: time until the lease ends, unless it is renewed.
    """

    def __init__(self, session_id: str, seconds: float) -> None:
        super().__init__(f"session_id: got {session_id!r}; another server holds this session. Try again later")
        self.seconds = seconds


class StoreError(SessionError):
    """The store has failed: nothing of what was to be written has been written. Where it is, and in which words it
    failed, is for the log only."""


class StoreFullError(StoreError):
    """The store has no space left."""

    def __init__(self, remedy: str) -> None:
        super().__init__(f"store: there is no space left for sessions. {remedy}")


class StoreUnavailableError(StoreError):
    """The store cannot be reached or does not answer."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"store: {problem}. Try again later")


class StoreConflictError(StoreError):
    """The store holds another version of the session than the change starts from."""

    def __init__(self, session_id: str, rule: str) -> None:
        super().__init__(f"session_id: got {session_id!r}; {rule}. Try again")


class SessionMovedError(StoreError):
    """Another server has taken the session over."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session_id: got {session_id!r}; another server has taken it over. Try again")


# Starting


class StartError(DomainError):
    """The server cannot start. The message says why and what would help."""


class SettingsError(StartError):
    """Settings are refused. One line for each problem: its source, the value, the rule, the remedy."""


class ModelLoadError(StartError):
    """A bundle cannot be served. The message names the file and what is wrong with it."""


class StoreOpenError(StartError):
    """The store of sessions cannot be opened."""


# What a message repeats of what a caller wrote


def shortened(value: object, longest: int = 100) -> str:
    """A value for a message, cut to `longest` characters: a text as it is, anything else as JSON."""
    written = value if isinstance(value, str) else json.dumps(value)
    return written if len(written) <= longest else f"{written[:longest]}..."


def listed(names: Iterable[str]) -> str:
    """Names for a message, separated by commas: the first ten and the number of the others."""
    found = list(names)
    more = f" and {len(found) - _LISTED_NAMES} more" if len(found) > _LISTED_NAMES else ""
    return ", ".join(found[:_LISTED_NAMES]) + more
