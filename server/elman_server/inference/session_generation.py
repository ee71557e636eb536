"""Generations in a session: the session is continued, or a call that was made on it is repeated."""

from __future__ import annotations

import asyncio
from array import array

from elman_server.inference.delivery import Mailbox
from elman_server.inference.generation_events import GenerationStarted
from elman_server.inference.generation_options import GenerationSettings
from elman_server.inference.generation_request import GenerationRequest
from elman_server.inference.generation_run import GenerationRun
from elman_server.inference.inputs import EncodedInput
from elman_server.inference.model import ServedModel
from elman_server.inference.resources import Resources
from elman_server.sessions import TOKEN_TYPE, SessionGeneration, Target


def _wanted(
    request: GenerationRequest, model: ServedModel, settings: GenerationSettings, arrived: float
) -> SessionGeneration:
    limit = settings.time_limit
    return SessionGeneration(
        settings.params,
        request.seed,
        settings.interval,
        tuple(settings.stop_sequences),
        model.vocabulary.decoder,
        "" if settings.constraint is None else settings.constraint.digest,
        None if limit is None else arrived + limit,
        settings.report_count,
    )


async def continue_session(
    resources: Resources,
    request: GenerationRequest,
    session: Target,
    model: ServedModel,
    prompt: EncodedInput,
    settings: GenerationSettings,
    arrived: float,
) -> GenerationRun:
    """Have a session continued, or listen to a call that was made on it.

    Args:
        resources: what the server has.
        request: the request.
        session: the session and the call.
        model: the model of the session.
        prompt: what follows what the session holds.
        settings: how it is continued.
        arrived: when the request arrived, by `time.perf_counter`.

    Raises:
        DomainError: why it cannot be continued.
    """
    news = asyncio.Event()
    mailbox = Mailbox(news)
    subscription = await resources.sessions.generator.generate(
        model.for_sessions,
        session,
        array(TOKEN_TYPE, prompt.ids.tolist()),
        mailbox,
        _wanted(request, model, settings, arrived),
        begin_token=model.begin_token,
    )
    mailbox.set_paused = subscription.set_paused
    started = GenerationStarted(
        model.name,
        model.bundle.digest,
        subscription.seed,
        subscription.prompt_count,
        prompt.unknown_count,
        session_position=subscription.start,
    )
    return GenerationRun(
        model,
        settings,
        started,
        arrived,
        news,
        [mailbox],
        subscription.cancel,
        received_count=request.received_token_count,
        context=subscription.context,
    )
