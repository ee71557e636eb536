"""Reading an input from where the prefix cache ends up to where a use case needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from elman_bundle.vocabulary import TokenIds
from elman_server.engine import Arrays
from elman_server.inference.delivery import Mailbox
from elman_server.inference.model import ServedModel
from elman_server.inference.prefix_cache import SNAPSHOT_STEPS, Prefix
from elman_server.inference.readings import run_reading
from elman_server.scheduling import Reading, ReadingFinished, Snapshot, Source


@dataclass(frozen=True)
class Prefilled:
    """How much of an input has been read.

    Attributes:
        position: number of tokens.
        state: the state after them; None for the initial state.
        step_count: steps that were taken here; those that the cache has saved are not among them.
        started: when the first of them was taken, by `time.perf_counter`; 0 if there were none.
    """

    position: int
    state: Arrays | None
    step_count: int = 0
    started: float = 0.0


async def read_all_but_last(
    model: ServedModel, ids: TokenIds, prefix: Prefix, source: Source | None = None
) -> Prefilled:
    """Read an input up to its last token, which every sequence that continues from there reads for itself, to see what
    the model shows after it.

    Args:
        model: what reads.
        ids: the input, int64 [T].
        prefix: what the cache knows of it.
        source: what the encoder reads before it, if the model has one.

    Raises:
        DomainError: why it could not be read.
    """
    end = len(ids) - 1
    if prefix.position >= end:
        return Prefilled(prefix.position, prefix.state)
    finished, started = await _read(model, ids, prefix, end, source, keep_state=True)
    if finished.state is not None:
        prefix.keep(Snapshot(end, finished.state))
    return Prefilled(end, finished.state, end - prefix.position, started)


async def last_output(model: ServedModel, ids: TokenIds, prefix: Prefix) -> NDArray[Any]:
    """Return the output [1, *shape] of the last step of an input, which the cache may know as well.

    Raises:
        DomainError: why it could not be read.
    """
    end = len(ids)
    if prefix.output is not None and prefix.position == end:
        return prefix.output
    finished, _ = await _read(model, ids, prefix, end, None, keep_state=prefix.caches)
    if finished.state is not None:
        prefix.keep(Snapshot(end, finished.state), finished.outputs)
    return finished.outputs


async def _read(
    model: ServedModel, ids: TokenIds, prefix: Prefix, end: int, source: Source | None, *, keep_state: bool
) -> tuple[ReadingFinished, float]:
    """Read from the end of the prefix; also return when the first step was taken, by `time.perf_counter`."""
    mailbox = Mailbox(keep=prefix.keep if prefix.caches else None)
    reading = Reading(
        ids[prefix.position : end],
        mailbox,
        prefix.state,
        source=source,
        position=prefix.position,
        keep_state=keep_state,
        every_step=False,
        snapshot_steps=SNAPSHOT_STEPS if prefix.caches else None,
    )
    return await run_reading(model, reading, mailbox), reading.started_at
