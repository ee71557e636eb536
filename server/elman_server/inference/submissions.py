"""Submitting the sequences that continue a prompt: one generation, one for each sample, or a beam search."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from elman_server.decoding.stopping import StopCheck
from elman_server.inference.delivery import Mailbox
from elman_server.inference.generation_events import GenerationStarted
from elman_server.inference.generation_options import GenerationSettings
from elman_server.inference.generation_run import GenerationRun
from elman_server.inference.inputs import EncodedInput
from elman_server.inference.model import ServedModel
from elman_server.inference.prefill import Prefilled
from elman_server.inference.prefix_cache import SNAPSHOT_STEPS, Prefix
from elman_server.inference.sources import EncodedSource
from elman_server.scheduling import Beams, Generation, Scheduler
from elman_server.scheduling import Sequence as ScheduledSequence


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt that has been checked and encoded.

    Attributes:
        arrived: when the request arrived, by `time.perf_counter`.
        model: the model.
        settings: how it is continued.
        seed: of the random numbers; None for a random one.
        prompt: the prompt.
        source: what the encoder reads, if the model has one.
        prefix: what the prefix cache knows of the prompt.
        read: how much of it has been read for all samples together; None if each sequence reads it.
    """

    arrived: float
    model: ServedModel
    settings: GenerationSettings
    seed: int | None
    prompt: EncodedInput
    source: EncodedSource | None
    prefix: Prefix
    read: Prefilled | None


def submit(prepared: PreparedPrompt) -> GenerationRun:
    """Submit what continues a prompt as its settings say.

    Raises:
        QueueFullError: too many sequences wait already.
        ServerDrainingError: the server is shutting down.
    """
    model, settings, prompt, source = prepared.model, prepared.settings, prepared.prompt, prepared.source
    seed = secrets.randbits(63) if prepared.seed is None else prepared.seed
    started = GenerationStarted(
        model.name,
        model.bundle.digest,
        seed,
        len(prompt.ids),
        prompt.unknown_count,
        cached_token_count=prepared.prefix.position,
        source_position_count=source.position_count if source else 0,
        source_unknown_count=source.unknown_count if source else 0,
    )
    news, read = asyncio.Event(), prepared.read
    # A prompt that is read in parts for several samples has been put into the cache with them.
    keep = prepared.prefix.keep if prepared.prefix.caches and read is None else None
    mailboxes = [Mailbox(news, keep) for _ in range(settings.sample_count)]
    searches = settings.beams is not None
    sequences = _beams(prepared, mailboxes) if searches else _generations(prepared, mailboxes, seed)
    scheduler = model.scheduler
    for mailbox, sequence in zip(mailboxes, sequences, strict=True):
        mailbox.set_paused = partial(scheduler.set_paused, sequence)
    stop = partial(_abort, scheduler, sequences)
    try:
        for sequence in sequences:
            scheduler.submit(sequence)
    except BaseException:
        stop()
        raise
    return GenerationRun(
        model,
        settings,
        started,
        prepared.arrived,
        news,
        mailboxes,
        stop,
        steps_before=read.step_count if read else 0,
        started_before=read.started if read else 0.0,
    )


def _beams(prepared: PreparedPrompt, mailboxes: Sequence[Mailbox]) -> list[ScheduledSequence]:
    settings, prefix, ids, limit = prepared.settings, prepared.prefix, prepared.prompt.ids, prepared.settings.time_limit
    assert settings.beams is not None
    (mailbox,) = mailboxes
    search = Beams(
        ids[prefix.position :],
        mailbox,
        prefix.state,
        source=prepared.source.source if prepared.source else None,
        position=prefix.position,
        params=settings.beams,
        shaping=settings.params.shaping,
        history=ids[: prefix.position],
        time_limit=None if limit is None else prepared.arrived + limit,
    )
    return [search]


def _generations(prepared: PreparedPrompt, mailboxes: Sequence[Mailbox], seed: int) -> list[ScheduledSequence]:
    """Return a generation for each mailbox; a single one reads the prompt and has states on the way kept."""
    settings, prefix, ids, limit = prepared.settings, prepared.prefix, prepared.prompt.ids, prepared.settings.time_limit
    begin = prepared.read or Prefilled(prefix.position, prefix.state)
    stops, vocabulary = settings.stop_sequences, prepared.model.vocabulary
    return [
        Generation(
            ids[begin.position :],
            mailbox,
            begin.state,
            source=prepared.source.source if prepared.source else None,
            position=begin.position,
            snapshot_steps=None if mailbox.keep is None else SNAPSHOT_STEPS,
            snapshots_prompt=True,
            params=replace(settings.params, seed=seed + index),
            interval=settings.interval,
            history=ids[: begin.position],
            report_count=settings.report_count,
            stop=StopCheck(stops, vocabulary.decoder()) if stops else None,
            time_limit=None if limit is None else prepared.arrived + limit,
        )
        for index, mailbox in enumerate(mailboxes)
    ]


def _abort(scheduler: Scheduler, sequences: Sequence[ScheduledSequence]) -> None:
    for sequence in sequences:
        scheduler.abort(sequence)
