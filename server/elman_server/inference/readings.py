"""Running readings to their end: sequences that read an input and generate nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from itertools import islice

from elman_server.errors import DomainError
from elman_server.inference.delivery import Mailbox
from elman_server.inference.model import ServedModel
from elman_server.scheduling import Event, Failed, Reading, ReadingFinished, Tree

_CALL_SHARE = 2  # A call uses at most 1/2 of the slots, which leaves some for others.


async def run_reading(
    model: ServedModel, reading: Reading | Tree, mailbox: Mailbox, *, always: bool = False
) -> ReadingFinished:
    """Run a reading, or a tree, to its end.

    Args:
        model: what reads.
        reading: what is read.
        mailbox: its receiver.
        always: see `Scheduler.submit`.

    Raises:
        DomainError: why it has not come to its end.
    """
    model.scheduler.submit(reading, always=always)
    try:
        return end_of(await mailbox.next_events())
    finally:
        if not reading.is_finished:
            model.scheduler.abort(reading)


async def run_readings(
    model: ServedModel, readings: Iterable[tuple[Reading, Mailbox]]
) -> AsyncGenerator[list[ReadingFinished], None]:
    """Run readings concurrently and yield their ends in order, as many at a time as there are. Closing the generator
    aborts those that have not finished.

    Args:
        model: what reads.
        readings: readings and their receivers; taken one by one, when they can start.

    Raises:
        DomainError: why the first of those that have not been yielded has not come to its end.
    """
    remaining = iter(readings)
    most = max(1, model.scheduler.slot_count // _CALL_SHARE)
    started: deque[tuple[Reading, Mailbox]] = deque()
    admitted = False
    try:
        while True:
            for reading, mailbox in islice(remaining, most - len(started)):
                model.scheduler.submit(reading, always=admitted)
                started.append((reading, mailbox))
                admitted = True
            if not started:
                return
            ends = [end_of(await started[0][1].next_events())]
            started.popleft()
            failure: Exception | None = None
            while failure is None and started and started[0][1].has_events:
                try:
                    ends.append(end_of(started.popleft()[1].take()))
                except DomainError as error:
                    failure = error  # Raised after the ends before it have been yielded.
            yield ends
            if failure is not None:
                raise failure
    finally:
        for reading, _ in started:
            model.scheduler.abort(reading)


def end_of(events: list[Event]) -> ReadingFinished:
    """Return the end of a reading, which is its only event.

    Raises:
        DomainError: why it has not come to its end.
    """
    (event,) = events
    if isinstance(event, Failed):
        raise event.error
    assert isinstance(event, ReadingFinished)
    return event
