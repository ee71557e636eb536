"""The use case Generate: continuations of a prompt, the results of a beam search, or the continuation of a session.

session target -> model -> options -> source -> prompt -> grammar
  -> prefix cache -> submission | session -> GenerationRun -> updates
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from elman_server.inference.generation import updates_of
from elman_server.inference.generation_events import GenerationUpdate
from elman_server.inference.generation_options import check_options
from elman_server.inference.generation_request import GenerationRequest
from elman_server.inference.generation_run import GenerationRun
from elman_server.inference.inputs import read_prompt, read_tokens
from elman_server.inference.prefill import read_all_but_last
from elman_server.inference.resources import Resources
from elman_server.inference.session_generation import continue_session
from elman_server.inference.session_targets import check_call
from elman_server.inference.sources import read_source
from elman_server.inference.submissions import PreparedPrompt, submit


async def generate(
    resources: Resources, request: GenerationRequest, caller: str
) -> AsyncGenerator[GenerationUpdate, None]:
    """Answer a request. Closing the generator ends what still runs.

    Args:
        resources: what the server has.
        request: the request.
        caller: identity of the caller, whose prefix cache is used.

    Raises:
        DomainError: why it cannot be answered, or not to its end.
    """
    run = await _start(resources, request, caller)
    try:
        async with aclosing(updates_of(run)) as updates:
            async for update in updates:
                yield update
    finally:
        run.stop()


async def _start(resources: Resources, request: GenerationRequest, caller: str) -> GenerationRun:
    """Check a request, encode what it brings, and have it run."""
    arrived, session, limits = time.perf_counter(), request.session, resources.limits
    if session is not None or request.received_token_count:
        check_call(session, request.received_token_count, has_source=request.source is not None)
    name = request.model or ("" if session is None else await resources.sessions.model_of(session.session_id))
    model = resources.models.that_generates(name)
    settings = check_options(request.options, model, limits, session)
    source = None
    if session is None and (model.has_encoder or request.source is not None):
        source = await read_source(request.source, model, limits)
    prompt = await (read_prompt if session is None else read_tokens)(request.prompt, model, limits)
    if settings.constraint is not None:
        # Where a call may continue a match, forced tokens are checked when they are generated.
        shaping = settings.params.shaping if session is None or len(prompt.ids) else None
        grammar = await resources.grammars.compile(model, settings.constraint, shaping)
        settings = replace(settings, params=replace(settings.params, grammar=grammar))
    if session is not None:
        return await continue_session(resources, request, session, model, prompt, settings, arrived)
    bypass = request.bypass_prefix_cache or source is not None
    prefix = resources.prefixes.look_up(model.bundle.digest, caller, prompt.ids, bypass=bypass)
    read = None
    if settings.sample_count > 1:
        read = await read_all_but_last(model, prompt.ids, prefix, source.source if source else None)
    return submit(PreparedPrompt(arrived, model, settings, request.seed, prompt, source, prefix, read))
