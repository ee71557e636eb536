"""The events of sequences that have rows, with their receivers."""

from __future__ import annotations

from elman_server.scheduling.events import Failed, Tokens
from elman_server.scheduling.interface import INTERNAL, Emission
from elman_server.scheduling.sequence import Generation, Sequence


def defect_end(sequence: Sequence) -> Emission:
    """The end of a sequence that has met a defect."""
    sequence.is_finished = True
    return sequence.receiver, Failed(INTERNAL)


def new_tokens(sequence: Sequence, tokens: tuple[int, ...]) -> Emission:
    """New tokens of a generation, with what is reported of them; an end token has no report."""
    assert isinstance(sequence, Generation)
    reports = tuple(sequence.reports[: len(tokens)])
    sequence.reports.clear()
    return sequence.receiver, Tokens(tokens, reports)
