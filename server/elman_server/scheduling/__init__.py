"""Scheduling: which sequences run next, and what becomes of them."""

from elman_server.scheduling.events import (
    CUT,
    BeamsFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReadingFinished,
    Receiver,
    Snapshot,
    TokenReport,
    Tokens,
)
from elman_server.scheduling.interface import INTERNAL, Deliver, Emission, RunningBatch
from elman_server.scheduling.loop import Scheduler
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.rows.batch import RowBatch
from elman_server.scheduling.sequence import Beams, Generation, Reading, SamplingParams, Sequence, Source
from elman_server.scheduling.trees.batch import TreeBatch
from elman_server.scheduling.trees.tree import Tree

__all__ = [
    "CUT",
    "INTERNAL",
    "Beams",
    "BeamsFinished",
    "Deliver",
    "Emission",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Generation",
    "Reading",
    "ReadingFinished",
    "Receiver",
    "RowBatch",
    "RunningBatch",
    "SamplingParams",
    "Scheduler",
    "SchedulingPolicy",
    "Sequence",
    "Snapshot",
    "Source",
    "TokenReport",
    "Tokens",
    "Tree",
    "TreeBatch",
]
