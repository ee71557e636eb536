"""Why a sequence is not run, or not to its end."""


class SchedulingError(Exception):
    """Whatever keeps a sequence from its end."""


class QueueFullError(SchedulingError):
    """As many sequences wait as may.

    Attributes:
        limit: how many that is.
    """

    def __init__(self, model: str, limit: int) -> None:
        super().__init__(f"{limit} requests wait for {model!r} already, as many as may: try again later")
        self.limit = limit


class SchedulerStoppedError(SchedulingError):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class SequenceFailedError(SchedulingError):
    """The model failed on this sequence; others are not affected."""
