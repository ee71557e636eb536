"""Schedulers with the fake engine, and inboxes for the events of their requests."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from elman_server.scheduling import (
    Deliver,
    Emission,
    Event,
    Generation,
    Reading,
    RowBatch,
    SamplingParams,
    Scheduler,
    SchedulingPolicy,
    Sequence,
    Tokens,
)
from tests.support.fake_engine import SIZE, FakeEngine


class Inbox:
    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()

    def receive(self, event: Event) -> None:
        self.events.put(event)

    def tokens_and_end(self) -> tuple[list[int], Event]:
        tokens: list[int] = []
        while True:
            event = self.events.get(timeout=10)
            if not isinstance(event, Tokens):
                return tokens, event
            tokens.extend(event.ids)


def deliver_events(emissions: list[Emission]) -> None:
    for receiver, event in emissions:
        receiver.receive(event)


def submitting(upcoming: list[Sequence], submit: Callable[[Sequence], None]) -> Callable[[list[Emission]], None]:
    """Return a function that delivers emissions and submits the next sequence, as the event loop does with calls."""

    def deliver(emissions: list[Emission]) -> None:
        deliver_events(emissions)
        if upcoming:
            submit(upcoming.pop(0))

    return deliver


def make_policy(
    run_seconds: float = 1.0, flush_interval_seconds: float = 0.0, messages_per_second: float = 1e9, **changes: Any
) -> SchedulingPolicy:
    """Return a policy that emits tokens immediately and makes runs as long as possible."""
    return SchedulingPolicy(
        **{
            "run_seconds": run_seconds,
            "flush_interval_seconds": flush_interval_seconds,
            "messages_per_second": messages_per_second,
            "emission_share": 0.0,
            **changes,
        }
    )


def make_scheduler(
    engine: FakeEngine,
    waiting_limit: int = 100,
    policy: SchedulingPolicy | None = None,
    deliver: Deliver = deliver_events,
) -> Scheduler:
    policy = policy or make_policy()
    rows = RowBatch("fake", engine, policy, input_name="token", vocabulary_size=SIZE, label_output="labels")
    return Scheduler("fake", rows, policy, waiting_limit=waiting_limit, deliver=deliver)


def generation(prompt: list[int], max_tokens: int, end_token: int | None = None, **options: Any) -> Generation:
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=max_tokens, end_token=end_token)
    return Generation(np.array(prompt), Inbox(), params=params, **options)


def reading(tokens: list[int], *, every_step: bool = False, **options: Any) -> Reading:
    return Reading(np.array(tokens), Inbox(), every_step=every_step, **options)


def until_running(scheduler: Scheduler, count: int) -> None:
    """Wait until `count` requests are running; the end of a request is delivered shortly before its row is free."""
    deadline = time.monotonic() + 10
    while scheduler.running_count != count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def inbox(sequence: Sequence) -> Inbox:
    assert isinstance(sequence.receiver, Inbox)
    return sequence.receiver
