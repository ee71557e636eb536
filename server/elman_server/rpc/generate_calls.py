"""What answers a Generate request: one continuation, several of one prompt, a beam search, or a session's."""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from elman_protos import v1
from elman_server.decoding.constraints import Grammar
from elman_server.decoding.stopping import StopCheck
from elman_server.errors import InvalidFieldError
from elman_server.rpc.compiling import Compiling
from elman_server.rpc.decoding import Decoding, requested_decoding
from elman_server.rpc.generation import Telling, Write, write_beams, write_generation
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import Models, ServedModel
from elman_server.rpc.prefill import Prefill
from elman_server.rpc.validation import (
    Limits,
    continuation_ids,
    delivery_interval,
    prompt_ids,
    received_count,
    requested_seed,
    requested_source,
    session_target,
)
from elman_server.scheduling import Beams, Generation, SamplingParams, Sequence
from elman_server.sessions import TOKEN_TYPE, GenerationRequest, PrefixCache, Sessions
from elman_server.sessions.prefixes import INTERVAL

_CHECKED = 256  # forced tokens; a mistake further on is found when the generation comes to it


class GenerateCalls:
    """Answers Generate requests.

    Args:
        models: what there is.
        sessions: what calls may continue.
        prefixes: states behind prompts that have been read before.
        compiling: what compiles constraints.
        limits: what one request may ask for.
    """

    def __init__(
        self, models: Models, sessions: Sessions, prefixes: PrefixCache, compiling: Compiling, limits: Limits
    ) -> None:
        self._models = models
        self._sessions = sessions
        self._prefixes = prefixes
        self._compiling = compiling
        self._limits = limits

    async def answer(self, request: v1.GenerateRequest, caller: str, write: Write) -> None:
        """Answer one to its end.

        Args:
            request: what is asked.
            caller: who asks.
            write: sends a message.

        Raises:
            DomainError: why it cannot be answered.
        """
        arrived = time.perf_counter()
        if request.HasField("session"):
            await self._continue_session(request, write, arrived)
            return
        if request.received_token_count:
            raise InvalidFieldError(
                "received_token_count", request.received_token_count, "only a call in a session can be repeated"
            )
        model = self._models.that_generates(request.model)
        given = requested_seed(request)
        seed = secrets.randbits(63) if given is None else given
        decoding = requested_decoding(request, seed, model, self._limits)
        interval = delivery_interval(request)
        source = await requested_source(request, model, self._limits)
        ids = await prompt_ids(request, model, self._limits)
        decoding = await self._compiled(decoding, model)
        prompt = Prefill.begin(model, ids, self._prefixes, caller, bypass=request.bypass_prefix_cache, source=source)
        started = v1.GenerateStarted(
            model=model.name,
            digest=model.bundle.digest,
            seed=seed,
            prompt_token_count=len(ids),
            unknown_token_count=model.count_unknown(ids),
            cached_token_count=prompt.position,
        )
        if source is not None:
            started.source_position_count = len(source.values)
            started.source_unknown_count = model.count_unknown_source(source.values)
        telling = Telling(
            model,
            write,
            started,
            arrived,
            decoding.stop_sequences,
            single=request.HasField("single_tokens"),
        )
        if decoding.beams is not None:
            await self._search(prompt, decoding, telling)
        elif decoding.sample_count > 1:
            await self._draw_several(prompt, decoding, telling, interval)
        else:
            await self._draw_one(prompt, decoding, telling, interval)

    async def _draw_one(self, prompt: Prefill, decoding: Decoding, telling: Telling, interval: float | None) -> None:
        mailbox, prefix = Mailbox(), prompt.prefix
        generation = Generation(
            prompt.unread,
            prefix.receiver(mailbox) if prefix else mailbox,
            prompt.state,
            source=prompt.source,
            position=prompt.position,
            snapshot_steps=INTERVAL if prefix else None,
            snapshots_prompt=True,
            interval=interval,
            history=prompt.read,
            **_manner(decoding, decoding.params, telling),
        )
        with _running(prompt.model, [generation]):
            await write_generation(mailbox, telling)

    async def _draw_several(
        self, prompt: Prefill, decoding: Decoding, telling: Telling, interval: float | None
    ) -> None:
        """Several continuations of one prompt, which is read once."""
        await prompt.read_all_but_one()
        mailboxes = [Mailbox() for _ in range(decoding.sample_count)]
        generations: list[Sequence] = [
            Generation(
                prompt.unread,
                mailbox,
                prompt.state,
                source=prompt.source,
                position=prompt.position,
                interval=interval,
                history=prompt.read,
                **_manner(decoding, replace(decoding.params, seed=decoding.params.seed + index), telling),
            )
            for index, mailbox in enumerate(mailboxes)
        ]
        writing, write_one = asyncio.Lock(), telling.write
        started = v1.GenerateResponse(started=telling.started)

        async def write(message: v1.GenerateResponse) -> None:
            async with writing:
                await write_one(message)

        telling = replace(telling, write=write, started=None)
        tellings = [replace(telling, index=index) for index in range(decoding.sample_count)]
        # What they share has been used once.
        tellings[0] = replace(telling, steps_before=prompt.step_count, begun_before=prompt.begun)

        with _running(prompt.model, generations):
            await write(started)
            writers = [
                asyncio.ensure_future(write_generation(mailbox, one))
                for mailbox, one in zip(mailboxes, tellings, strict=True)
            ]
            try:
                await asyncio.gather(*writers)
            finally:
                for writer in writers:
                    writer.cancel()

    async def _search(self, prompt: Prefill, decoding: Decoding, telling: Telling) -> None:
        mailbox = Mailbox()
        assert decoding.beams is not None
        beams = Beams(
            prompt.unread,
            mailbox,
            prompt.state,
            source=prompt.source,
            position=prompt.position,
            params=decoding.beams,
            shaping=decoding.params.shaping,
            history=prompt.read,
            time_limit=_deadline(decoding, telling),
        )
        with _running(prompt.model, [beams]):
            await write_beams(mailbox, telling)

    async def _continue_session(self, request: v1.GenerateRequest, write: Write, arrived: float) -> None:
        """Have a session continued, or a call that was made on it repeated."""
        target = session_target(request)
        received = received_count(request)
        name = request.model or await self._sessions.model_of(target.session_id)
        model = self._models.that_generates(name)
        if request.HasField("source"):
            raise InvalidFieldError("source", "a source", "a session continues from its own state", "Leave it out")
        decoding = requested_decoding(request, 0, model, self._limits)
        interval = delivery_interval(request)
        ids = await continuation_ids(request, model, self._limits)
        decoding = await self._compiled(decoding, model)
        telling = Telling(
            model,
            write,
            None,
            arrived,
            decoding.stop_sequences,
            single=request.HasField("single_tokens"),
            received=received,
        )
        mailbox = Mailbox()
        listening = await self._sessions.calls.generate(
            model.for_sessions,
            target,
            array(TOKEN_TYPE, ids.tolist()),
            mailbox,
            GenerationRequest(
                decoding.params,
                requested_seed(request),
                interval,
                _stop_check(decoding, model),
                _deadline(decoding, telling),
                decoding.report_count,
            ),
            begin_token=model.begin_token,
        )
        started = v1.GenerateStarted(
            model=model.name,
            digest=model.bundle.digest,
            seed=listening.seed,
            prompt_token_count=listening.prompt_count,
            unknown_token_count=model.count_unknown(ids),
            session_position=listening.start,
        )
        try:
            await write_generation(mailbox, replace(telling, started=started))
        finally:
            listening.leave()

    async def _compiled(self, decoding: Decoding, model: ServedModel) -> Decoding:
        """With the grammar of its constraint.

        Raises:
            InvalidFieldError: there is none such, or it does not allow what is forced.
            QueueFullError: too many others are to be compiled.
        """
        if decoding.constraint is None:
            return decoding
        grammar = await self._compiling.compile(model, decoding.constraint)
        if grammar.start().is_exhausted:
            raise InvalidFieldError(
                "constraint", "an expression that matches the empty text only", "it lets this model generate nothing"
            )
        if forced := decoding.params.shaping.forced_tokens if decoding.params.shaping else ():
            await asyncio.to_thread(_check_forced, forced[:_CHECKED], grammar)
        return replace(decoding, params=replace(decoding.params, grammar=grammar))


@contextmanager
def _running(model: ServedModel, sequences: list[Sequence]) -> Iterator[None]:
    """Have sequences run; whatever happens, none of them does afterwards."""
    try:
        for sequence in sequences:
            model.scheduler.submit(sequence)
        yield
    finally:
        for sequence in sequences:
            model.scheduler.abort(sequence)


def _check_forced(tokens: tuple[int, ...], grammar: Grammar) -> None:
    matcher = grammar.start()
    for token in tokens:
        matcher.accept(token)
        if matcher.is_exhausted:
            return
        if matcher.error is not None:
            raise InvalidFieldError(
                "shaping.forced_token_ids", f"token {token}", f"the constraint excludes it: {matcher.error}"
            )


def _manner(decoding: Decoding, params: SamplingParams, telling: Telling) -> dict[str, Any]:
    """What of a generation is the request's."""
    check = _stop_check(decoding, telling.model)
    return {
        "params": params,
        "stop": check() if check else None,
        "time_limit": _deadline(decoding, telling),
        "report_count": decoding.report_count,
    }


def _stop_check(decoding: Decoding, model: ServedModel) -> Callable[[], StopCheck] | None:
    """What makes a check for stop sequences that has seen nothing."""
    if not decoding.stop_sequences:
        return None
    return lambda: StopCheck(decoding.stop_sequences, model.vocabulary.decoder())


def _deadline(decoding: Decoding, telling: Telling) -> float | None:
    return None if decoding.time_limit is None else telling.arrived + decoding.time_limit
