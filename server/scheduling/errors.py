"""Why a sequence is not run, or not to its end."""


class QueueFullError(Exception):
    """As many sequences wait as may."""


class SchedulerStoppedError(Exception):
    """The server is shutting down."""


class SequenceFailedError(Exception):
    """The model failed on this sequence; others are not affected."""
