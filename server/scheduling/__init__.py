"""Scheduling: which sequences run next, and what becomes of them."""

from server.scheduling.errors import QueueFullError, SchedulerStoppedError, SchedulingError, SequenceFailedError
from server.scheduling.pace import Pace
from server.scheduling.scheduler import Scheduler
from server.scheduling.sequence import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Reading,
    ReadingFinished,
    Receiver,
    SamplingParams,
    Sequence,
    Snapshot,
    Tokens,
)

__all__ = [
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Generation",
    "Pace",
    "QueueFullError",
    "Reading",
    "ReadingFinished",
    "Receiver",
    "SamplingParams",
    "Scheduler",
    "SchedulerStoppedError",
    "SchedulingError",
    "Sequence",
    "SequenceFailedError",
    "Snapshot",
    "Tokens",
]
