"""Why a session cannot be had, or not be advanced. Every message says what would help."""

from __future__ import annotations


class SessionError(Exception):
    """Whatever is wrong with a session; the others never notice."""


class SessionNotFoundError(SessionError):
    """There is no session of that id."""


class SessionExistsError(SessionError):
    """There is a session of that id already."""


class SessionConflictError(SessionError):
    """The session is not where the caller believes it to be.

    Attributes:
        position: where it is.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class PositionMismatchError(SessionConflictError):
    """It is at another position."""


class SessionBusyError(SessionConflictError):
    """A call is under way on it."""


class RequestMismatchError(SessionError):
    """Another call on this session had the same name."""


class BundleMismatchError(SessionError):
    """The session began with another bundle than the model has now."""


class EmptyPromptError(SessionError):
    """There is nothing to continue."""


class SessionFileError(SessionError):
    """What is to be imported is no session, or a damaged one."""


class SessionDamagedError(SessionError):
    """What the store holds of the session is of no use."""


class SessionLimitError(SessionError):
    """There are as many sessions as may be."""


class StoreError(SessionError):
    """The store has failed: nothing of what was to be written is."""


class StoreFullError(StoreError):
    """There is no space left for it."""


class StoreUnavailableError(StoreError):
    """It cannot be reached, or does not answer."""


class StoreConflictError(StoreError):
    """It holds the session in another form than the change begins at."""


class SessionMovedError(StoreError):
    """Another server has the session now."""


class SessionElsewhereError(SessionError):
    """Another server has the session.

    Attributes:
        seconds: after which it has it no more, unless it goes on.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class StoreOpenError(Exception):
    """The store cannot be opened when the server starts."""
