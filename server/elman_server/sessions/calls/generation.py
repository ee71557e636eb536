"""Generations on sessions: a call starts one, joins a running one, or is answered from its record."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from elman_server.decoding.constraints import Matcher
from elman_server.decoding.stopping import StopCheck
from elman_server.errors import EmptyPromptError, SessionBusyError
from elman_server.scheduling import Finished, FinishReason, Generation, Receiver, Tokens
from elman_server.sessions.active_generation import ActiveGeneration
from elman_server.sessions.answers import AnswerContext, Answers
from elman_server.sessions.calls.records import Target, check_same_request, finished_call, recorded_call
from elman_server.sessions.calls.session_answers import (
    SessionGeneration,
    answer_of,
    begin_answer,
    context_of_call,
    match_before,
    stop_check,
)
from elman_server.sessions.model import SessionModel
from elman_server.sessions.registry import SessionRegistry
from elman_server.sessions.session import TOKEN_TYPE, Call, Session

_NO_TOKENS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Subscription:
    """A subscription to the tokens of a call.

    Attributes:
        seed: seed of the generation.
        start: position of the session before the call.
        prompt_count: number of tokens that the call brought.
        context: what precedes the text of its answer.
        cancel: ends the subscription.
        set_paused: called with whether the subscriber is far behind; the generation is paused while all of them are.
    """

    seed: int
    start: int
    prompt_count: int
    context: AnswerContext
    cancel: Callable[[], None]
    set_paused: Callable[[bool], None] | None = None


class SessionGenerator:
    """Runs calls that generate.

    Args:
        registry: the sessions.
        snapshot_steps: approximate number of steps between two snapshots.
    """

    def __init__(self, registry: SessionRegistry, snapshot_steps: int) -> None:
        self._registry = registry
        self._snapshot_steps = snapshot_steps

    async def generate(
        self,
        model: SessionModel,
        target: Target,
        prompt: array[int],
        subscriber: Receiver,
        request: SessionGeneration,
        *,
        begin_token: int | None,
    ) -> Subscription:
        """Generate on a session. A repeated call joins the running generation of the first attempt or replays it.

        Args:
            model: the model of the session.
            target: the session and the call.
            prompt: tokens that follow those of the session; may be empty, unless the session is.
            subscriber: receives all tokens of the call, from its first one, and its end.
            request: what to generate.
            begin_token: the token that an empty session starts with, if the model has one.

        Raises:
            SessionNotFoundError, BundleMismatchError: there is no such session of this model.
            SessionBusyError: another call continues the session.
            PositionMismatchError, RequestMismatchError: see `recorded_call`.
            EmptyPromptError: there is no token to start from.
            QueueFullError, ServerDrainingError: the generation is refused.
        """
        try:
            session = await self._registry.claim(target.session_id)
        except SessionBusyError:
            subscription = await self._join(model, target, subscriber, request)
            if subscription is None:
                raise
            return subscription
        generation = None
        try:
            model.check_owns(session)
            seed = _seed(session, request)
            call = recorded_call(session, target)
            if call is None:
                prompt = _new_tokens(begin_token, session, prompt)
                answer = begin_answer(session, request, prompt).pack()
                call = Call(target.request_id, target.fingerprint, session.position, len(prompt), answer=answer)
            else:
                prompt = array(TOKEN_TYPE)  # The session contains it already.
            context = context_of_call(session, call, prompt)
            stop = stop_check(request, context)
            matcher = await match_before(session, call, request)
            reason = _finish_reason(session, call, request, stop, matcher)
            if reason is not None:
                return _replay(session, replace(call, outcome=reason.value), subscriber, seed)
            generation = self._start(model, session, call, prompt, request, seed, stop, matcher, context)
            return _subscribe(generation, subscriber, seed)
        except Exception as error:
            if generation is not None:  # It gives up the claim when it has ended.
                generation.stop(error)
            raise
        finally:
            if generation is None:
                self._registry.release(session.session_id)

    async def _join(
        self, model: SessionModel, target: Target, subscriber: Receiver, request: SessionGeneration
    ) -> Subscription | None:
        """Answer a repeated call on a busy session: replay it if it has finished, or join its running generation.
        Return None if another call runs on the session."""
        session = await self._registry.get_for(model, target.session_id)
        seed = _seed(session, request)
        if (finished := finished_call(session, target)) is not None:
            return _replay(session, finished, subscriber, seed)
        running = self._registry.claims.generation_of(target.session_id)
        if running is None or not target.request_id or running.call.request_id != target.request_id:
            return None
        check_same_request(running.call, target)
        return _subscribe(running, subscriber, seed)

    def _start(
        self,
        model: SessionModel,
        session: Session,
        call: Call,
        prompt: array[int],
        request: SessionGeneration,
        seed: int,
        stop: StopCheck | None,
        matcher: Matcher | None,
        context: AnswerContext,
    ) -> ActiveGeneration:
        """Start the generation of a call, from its start or from where it was interrupted."""
        start, params = model.resume_point(session), request.params
        answer = answer_of(call, request)
        active = ActiveGeneration(
            session,
            call,
            journal=self._registry.journal,
            layout=model.layout,
            on_written=self._registry.cache.apply,
            on_finished=lambda failed: self._registry.release(session.session_id, failed=failed),
            context=context,
            answers=Answers.of(session).with_next(answer, call.start),
            can_continue=answer.can_continue,
        )
        generation = Generation(
            np.concatenate([start.unread, np.array(prompt, np.int64)]),
            active,
            start.state,
            position=start.position,
            keep_state=True,
            snapshot_steps=self._snapshot_steps,
            params=replace(params, seed=seed, max_tokens=params.max_tokens - call.generated_count),
            interval=request.interval,
            history=np.array(session.tokens[: start.position], np.int64) if params.needs_logits else _NO_TOKENS,
            generated_count=call.generated_count,
            matcher=matcher,
            report_count=request.report_count,
            stop=stop,
            time_limit=request.time_limit,
        )
        self._registry.claims.assign(active)
        active.start(model.scheduler, generation, prompt)
        return active


def _seed(session: Session, request: SessionGeneration) -> int:
    return session.seed if request.seed is None else request.seed


def _new_tokens(begin_token: int | None, session: Session, prompt: array[int]) -> array[int]:
    """Return the tokens that a call brings: its prompt, in an empty session after the begin token.

    Raises:
        EmptyPromptError: there is no token to start from.
    """
    if session.tokens:
        return prompt
    if begin_token is not None:
        return array(TOKEN_TYPE, [begin_token, *prompt])
    if not prompt:
        raise EmptyPromptError(session.session_id)
    return prompt


def _finish_reason(
    session: Session, call: Call, request: SessionGeneration, stop: StopCheck | None, matcher: Matcher | None
) -> FinishReason | None:
    """Return why a call has finished; None if it must run. An interrupted call may have reached its end without having
    recorded it. `stop` is fed with the tokens that the call has generated; `matcher` has accepted them."""
    if call.outcome:
        return FinishReason(call.outcome)
    generated = session.generated(call).tolist()
    if stop is not None and stop.feed(generated) is not None:
        return FinishReason.STOP_SEQUENCE
    if generated and matcher is not None and matcher.is_exhausted:
        return FinishReason.CONSTRAINT
    return FinishReason.MAX_TOKENS if call.generated_count >= request.params.max_tokens else None


def _replay(session: Session, call: Call, subscriber: Receiver, seed: int) -> Subscription:
    """Deliver the events of a finished call again."""
    subscriber.receive(Tokens(tuple(session.generated(call))))
    subscriber.receive(Finished(FinishReason(call.outcome), call.end))
    context = context_of_call(session, call, array(TOKEN_TYPE))
    return Subscription(seed, call.start, call.prompt_count, context, lambda: None)


def _subscribe(generation: ActiveGeneration, subscriber: Receiver, seed: int) -> Subscription:
    generation.subscribe(subscriber)
    call = generation.call
    return Subscription(
        seed,
        call.start,
        call.prompt_count,
        generation.context,
        partial(generation.unsubscribe, subscriber),
        partial(generation.set_paused, subscriber),
    )
