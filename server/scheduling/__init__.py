"""Scheduling: which sequences run next, and what becomes of them."""

from server.scheduling.errors import QueueFullError, SchedulerStoppedError, SchedulingError, SequenceFailedError
from server.scheduling.forest import Forest
from server.scheduling.pace import Pace
from server.scheduling.rows import Rows
from server.scheduling.running import Running
from server.scheduling.scheduler import Scheduler
from server.scheduling.sequence import (
    Beams,
    BeamsFinished,
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
    Source,
    TokenReport,
    Tokens,
)
from server.scheduling.tree import Tree

__all__ = [
    "Beams",
    "BeamsFinished",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Forest",
    "Generation",
    "Pace",
    "QueueFullError",
    "Reading",
    "ReadingFinished",
    "Receiver",
    "Rows",
    "Running",
    "SamplingParams",
    "Scheduler",
    "SchedulerStoppedError",
    "SchedulingError",
    "Sequence",
    "SequenceFailedError",
    "Snapshot",
    "Source",
    "TokenReport",
    "Tokens",
    "Tree",
]
