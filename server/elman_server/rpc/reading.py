"""Running readings to their end: one, or many side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from itertools import islice

from elman_server.errors import DomainError
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import ServedModel
from elman_server.scheduling import Event, Failed, Reading, ReadingFinished, Sequence, Tree

_SHARE = 2  # One call takes at most one slot of so many, so that others find some free.


async def run_reading(
    model: ServedModel, reading: Reading | Tree, mailbox: Mailbox | None = None, *, always: bool = False
) -> ReadingFinished:
    """Run a reading, or a tree, to its end.

    Args:
        model: what reads.
        reading: what.
        mailbox: where its end comes, if that is not the reading's receiver itself.
        always: see `Scheduler.submit`.

    Raises:
        DomainError: what keeps it from its end.
    """
    if mailbox is None:
        mailbox = _mailbox_of(reading)
    model.scheduler.submit(reading, always=always)
    try:
        return end_of(await mailbox.gather())
    finally:
        if not reading.ended:
            model.scheduler.abort(reading)


async def run_readings(model: ServedModel, readings: Iterable[Reading]) -> AsyncGenerator[list[ReadingFinished], None]:
    """Run readings, some of them at once, and give their ends in their order, as many at a time as are there. Whoever
    closes the generator lets go those that are under way.

    Args:
        model: what reads.
        readings: what; each has a `Mailbox` of its own. They are taken one by one, when they can begin.

    Raises:
        DomainError: what keeps the first of those that have not been given from its end.
    """
    left = iter(readings)
    most = max(1, model.scheduler.slot_count // _SHARE)
    under_way: deque[Reading] = deque()
    let_in = False
    try:
        while True:
            for reading in islice(left, most - len(under_way)):
                model.scheduler.submit(reading, always=let_in)
                under_way.append(reading)
                let_in = True
            if not under_way:
                return
            ended = [end_of(await _mailbox_of(under_way[0]).gather())]
            under_way.popleft()
            failure: Exception | None = None
            while failure is None and under_way and _mailbox_of(under_way[0]).has_events:
                try:
                    ended.append(end_of(await _mailbox_of(under_way.popleft()).gather()))
                except DomainError as error:
                    failure = error  # Its turn comes when those before it have been given.
            yield ended
            if failure is not None:
                raise failure
    finally:
        for reading in under_way:
            model.scheduler.abort(reading)


def _mailbox_of(reading: Sequence) -> Mailbox:
    assert isinstance(reading.receiver, Mailbox)
    return reading.receiver


def end_of(events: list[Event]) -> ReadingFinished:
    """The end of a reading, which is all that is told of it.

    Raises:
        DomainError: what kept it from that.
    """
    (event,) = events
    if isinstance(event, Failed):
        raise event.error
    assert isinstance(event, ReadingFinished)
    return event
