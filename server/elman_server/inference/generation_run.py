"""A generation that has been submitted: what runs, and what is needed to turn its events into updates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elman_server.inference.delivery import Mailbox
from elman_server.inference.generation_events import GenerationStarted, GenerationUsage
from elman_server.inference.generation_options import GenerationSettings
from elman_server.inference.model import ServedModel
from elman_server.sessions import AnswerContext


@dataclass(frozen=True)
class GenerationRun:
    """A generation that has been submitted.

    Attributes:
        model: the model.
        settings: how tokens are chosen and delivered.
        started: the start of the request.
        arrived: when the request arrived, by `time.perf_counter`.
        news: set when one of the mailboxes has an event.
        mailboxes: receivers of the sequences: one, or one for each sample.
        stop: ends what still runs; harmless after the end.
        received_count: tokens that the caller has from an earlier attempt. They are not sent again; the text continues
            behind theirs, within a character if need be.
        context: what precedes its text in a session; None without one.
        steps_before: steps taken for all sequences together before they were submitted.
        started_before: when the first of these was taken, by `time.perf_counter`; 0 if there were none.
    """

    model: ServedModel
    settings: GenerationSettings
    started: GenerationStarted
    arrived: float
    news: asyncio.Event
    mailboxes: Sequence[Mailbox]
    stop: Callable[[], None]
    received_count: int = 0
    context: AnswerContext | None = None
    steps_before: int = 0
    started_before: float = 0.0

    def usage(self, index: int, step_count: int, started: float, first_token: float) -> GenerationUsage:
        """Return what a sequence has used up to now. The first one accounts for the steps that all of them share.

        Args:
            index: which sequence.
            step_count: its steps.
            started: when the first of them was taken, by `time.perf_counter`.
            first_token: when its first token was there, by the same clock.
        """
        shared = self.steps_before if index == 0 else 0
        started = (self.started_before or started) if index == 0 else started
        return GenerationUsage(
            shared + step_count,
            # A call that joins a running generation may have arrived after its first step.
            max(0.0, started - self.arrived),
            max(0.0, first_token - self.arrived),
            time.perf_counter() - self.arrived,
        )
