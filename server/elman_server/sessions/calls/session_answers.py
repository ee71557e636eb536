"""What a call generates, and where its answer begins: where an answer before it does, as far as it continues that."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from elman_bundle import TextDecoder
from elman_server.decoding.constraints import Matcher
from elman_server.decoding.stopping import StopCheck
from elman_server.errors import InvalidFieldError
from elman_server.scheduling import SamplingParams
from elman_server.sessions.answers import Answer, AnswerContext, Answers, context_of
from elman_server.sessions.session import Call, Session

_MATCHED_TOKENS = 16_384  # that a constraint matches anew when a call continues it
_FEW_TOKENS = 128  # that it matches within a millisecond


@dataclass(frozen=True)
class SessionGeneration:
    """What a call generates.

    Attributes:
        params: how tokens are chosen; their seed is ignored.
        seed: seed of the call; None for the seed of the session.
        interval: seconds for which tokens may be coalesced; see `Generation`.
        stop_sequences: texts that end it.
        decoder: makes a decoder of the model's tokens behind others.
        constraint: digest of the constraint; "" for none.
        time_limit: see `Generation`.
        report_count: see `Generation`.
    """

    params: SamplingParams
    seed: int | None = None
    interval: float | None = None
    stop_sequences: tuple[str, ...] = ()
    decoder: Callable[[Sequence[int]], TextDecoder] | None = None
    constraint: str = ""
    time_limit: float | None = None
    report_count: int | None = None


def begin_answer(session: Session, request: SessionGeneration, prompt: array[int]) -> Answer:
    """Return where the answer of a new call begins: where the last one did, as far as the call continues that.

    Raises:
        InvalidFieldError: the match that it continues is too long.
    """
    position = session.position
    start = position + len(prompt)
    last = Answers.of(session).at(position)
    fresh = Answer(start, start, start, request.stop_sequences, request.constraint)
    if len(prompt) or last is None:
        return fresh
    searched_from, matched_from, unsent = start, start, ""
    if last.stop_sequences:
        if last.stop_sequences == request.stop_sequences:
            searched_from = last.searched_from
        elif request.decoder is not None:
            context = context_of(session, last, position, prompt)
            unsent = StopCheck(last.stop_sequences, request.decoder(context.before), context.searched).held
    if last.constraint and last.constraint == request.constraint:
        matched_from = last.matched_from
        if position - matched_from > _MATCHED_TOKENS:
            got, rule = f"a match of {position - matched_from} tokens", f"at most {_MATCHED_TOKENS} can be continued"
            raise InvalidFieldError("constraint", got, rule, "Give a prompt, which begins another one")
    return replace(fresh, searched_from=searched_from, matched_from=matched_from, unsent=unsent)


def answer_of(call: Call, request: SessionGeneration) -> Answer:
    """Return where the answer of a call began."""
    found = Answer.unpack(call.answer, call.start + call.prompt_count)
    return replace(found, stop_sequences=request.stop_sequences, constraint=request.constraint)


def context_of_call(session: Session, call: Call, prompt: array[int]) -> AnswerContext:
    """Return what precedes the answer of a call.

    Args:
        session: the session.
        call: the call.
        prompt: its prompt, if the session does not hold that yet.
    """
    start = call.start + call.prompt_count
    return context_of(session, Answer.unpack(call.answer, start), start, prompt)


async def match_before(session: Session, call: Call, request: SessionGeneration) -> Matcher | None:
    """Return the match of what has been generated of a call's answer; None if nothing has, or if it matches nothing. A
    long one is made on a thread."""
    grammar = request.params.grammar
    tokens = session.tokens[answer_of(call, request).matched_from : call.end]
    if grammar is None or not tokens:
        return None
    return await asyncio.to_thread(grammar.after, tokens) if len(tokens) > _FEW_TOKENS else grammar.after(tokens)


def stop_check(request: SessionGeneration, context: AnswerContext) -> StopCheck | None:
    """Return what finds the stop sequences of a call; None if it has none."""
    if not request.stop_sequences or request.decoder is None:
        return None
    return StopCheck(request.stop_sequences, request.decoder(context.before), context.searched)
