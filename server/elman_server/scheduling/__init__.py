"""Scheduling: which sequences run next, and what becomes of them."""

from elman_server.scheduling.forest import Forest
from elman_server.scheduling.pace import Pace
from elman_server.scheduling.rows import Rows
from elman_server.scheduling.running import Running
from elman_server.scheduling.scheduler import Scheduler
from elman_server.scheduling.sequence import (
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
from elman_server.scheduling.tree import Tree

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
    "Reading",
    "ReadingFinished",
    "Receiver",
    "Rows",
    "Running",
    "SamplingParams",
    "Scheduler",
    "Sequence",
    "Snapshot",
    "Source",
    "TokenReport",
    "Tokens",
    "Tree",
]
