"""What continues sessions: generations, readings, and their repetitions.

Residence (who has the session) -> Run or read (scheduling) -> Journal (store) -> the session in memory
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.stopping import StopCheck
from elman_server.errors import EmptyPromptError, PositionMismatchError, RequestMismatchError, SessionBusyError
from elman_server.scheduling import Finished, FinishReason, Generation, Receiver, SamplingParams, Tokens
from elman_server.sessions.reading import SessionModel, beginning, read
from elman_server.sessions.residence import Residence, check_suits
from elman_server.sessions.run import Run
from elman_server.sessions.session import TOKEN_TYPE, Advance, Call, Session

_NOTHING = np.empty(0, np.int64)
_READ = "read"  # the outcome of a call that has generated nothing


@dataclass(frozen=True)
class Target:
    """What a call says about its session.

    Attributes:
        session_id: which.
        position: where the caller believes it to be; None: wherever it is.
        request_id: the call's name; "" if it has none.
        fingerprint: of what it asks for.
    """

    session_id: str
    position: int | None
    request_id: str
    fingerprint: bytes


@dataclass(frozen=True)
class GenerationRequest:
    """What a call generates.

    Attributes:
        params: how to choose tokens; its seed does not matter.
        seed: of the call; None for the session's.
        interval: for how long tokens may gather; see `Generation`.
        stop: makes what tells where a stop sequence ends it; None if nothing does.
        time_limit: see `Generation`.
        report_count: see `Generation`.
    """

    params: SamplingParams
    seed: int | None = None
    interval: float | None = None
    stop: Callable[[], StopCheck] | None = None
    time_limit: float | None = None
    report_count: int | None = None


@dataclass(frozen=True)
class Listening:
    """That somebody listens to a generation on a session.

    Attributes:
        seed: its own or the session's.
        start: the session's position before the call.
        prompt_count: how many tokens the call brought.
        leave: to be called when they listen no more.
    """

    seed: int
    start: int
    prompt_count: int
    leave: Callable[[], None]


@dataclass(frozen=True)
class SessionReading:
    """What a call that labels has got.

    Attributes:
        outputs: of each of the call's tokens, or of the last one.
        end: the session's position after it.
    """

    outputs: NDArray[Any]
    end: int


class Calls:
    """Calls on sessions.

    Args:
        residence: who has which.
        snapshot_steps: after so many steps, about, the state is kept.
    """

    def __init__(self, residence: Residence, snapshot_steps: int) -> None:
        self._residence = residence
        self._snapshot_steps = snapshot_steps

    async def generate(
        self,
        model: SessionModel,
        target: Target,
        prompt: array[int],
        listener: Receiver,
        request: GenerationRequest,
        *,
        begin_token: int | None,
    ) -> Listening:
        """Generate on a session, or listen to what has been generated already by a call of that name.

        Args:
            model: the session's model.
            target: which session.
            prompt: what follows what it holds; may be nothing, unless the session is empty.
            listener: is told the tokens of the whole call, from its first one on, and its end.
            request: what to generate.
            begin_token: what an empty session begins with, if anything.

        Raises:
            SessionNotFoundError, BundleMismatchError, SessionBusyError: see there.
            PositionMismatchError, RequestMismatchError: see there.
            EmptyPromptError: there is nothing to continue.
            QueueFullError, ServerDrainingError: it does not run.
        """
        try:
            session = await self._residence.claim(target.session_id)
        except SessionBusyError:
            session = await self._residence.suitable(target.session_id, model)
            seed = session.seed if request.seed is None else request.seed
            if (ended := _ended(session, target)) is not None:
                return _recited(session, ended, listener, seed)
            running = self._residence.run_of(target.session_id)
            if running is None or not target.request_id or running.call.request_id != target.request_id:
                raise
            _check_same(running.call, target)
            return _heard(running, listener, seed)
        run = None
        try:
            check_suits(session, model)
            seed = session.seed if request.seed is None else request.seed
            call = self._recorded(session, target)
            if call is None:
                prompt = _beginning_with(begin_token, session, prompt)
                call = Call(target.request_id, target.fingerprint, session.position, len(prompt))
            else:
                prompt = array(TOKEN_TYPE)  # The session holds it.
            stop = request.stop() if request.stop else None
            reason = _reason_to_end(session, call, request, stop)
            if reason is not None:
                return _recited(session, replace(call, outcome=reason.value), listener, seed)
            run = self._run(model, session, call, prompt, request, seed, stop)
            return _heard(run, listener, seed)
        finally:
            if run is None:
                self._residence.release(session.session_id)

    def _run(
        self,
        model: SessionModel,
        session: Session,
        call: Call,
        prompt: array[int],
        request: GenerationRequest,
        seed: int,
        stop: StopCheck | None,
    ) -> Run:
        """Have a call generate, from its beginning or from where it was broken off."""
        begin, params = beginning(session, model), request.params
        run = Run(
            session,
            call,
            journal=self._residence.journal,
            layout=model.layout,
            take=self._residence.take,
            end=lambda failed: self._residence.release(session.session_id, failed=failed),
        )
        generation = Generation(
            np.concatenate([begin.backlog, np.array(prompt, np.int64)]),
            run,
            begin.state,
            position=begin.position,
            keep_state=True,
            snapshot_steps=self._snapshot_steps,
            params=replace(params, seed=seed, max_tokens=params.max_tokens - call.generated_count),
            interval=request.interval,
            history=np.array(session.tokens[: begin.position], np.int64) if params.needs_logits else _NOTHING,
            generated_count=call.generated_count,
            report_count=request.report_count,
            stop=stop,
            time_limit=request.time_limit,
        )
        self._residence.give_to(run)
        run.start(model.scheduler, generation, prompt)
        return run

    async def read(
        self, model: SessionModel, target: Target, tokens: array[int], *, every_step: bool, always: bool = False
    ) -> SessionReading:
        """Have a session read some tokens, or give back what a call of that name has been shown already.

        Args:
            model: the session's model.
            target: which session.
            tokens: what it reads, at least one.
            every_step: whether the outputs of every token are wanted, or of the last one.
            always: read them however many wait; for a part of what was let in before.

        Raises:
            SessionNotFoundError, BundleMismatchError, SessionBusyError: see there.
            PositionMismatchError, RequestMismatchError: see there.
            QueueFullError, ServerDrainingError, ModelFailedError: nothing has been read.
        """
        try:
            async with self._residence.claimed(target.session_id) as session:
                check_suits(session, model)
                call = self._recorded(session, target)
                if call is not None:
                    return SessionReading(_unpacked(call.answer), call.end)
                return await self._read(model, session, target, tokens, every_step=every_step, always=always)
        except SessionBusyError:
            ended = _ended(await self._residence.suitable(target.session_id, model), target)
            if ended is None:
                raise
            return SessionReading(_unpacked(ended.answer), ended.end)

    async def _read(
        self,
        model: SessionModel,
        session: Session,
        target: Target,
        tokens: array[int],
        *,
        every_step: bool,
        always: bool,
    ) -> SessionReading:
        steps = self._snapshot_steps
        found = await read(
            session, model, tokens, every_step=every_step, shown=True, snapshot_steps=steps, always=always
        )
        start = session.position
        answer = _packed(found.outputs) if target.request_id else b""
        call = Call(target.request_id, target.fingerprint, start, len(tokens), 0, _READ, answer)
        await self._write_reading(session, tokens, call if target.request_id else None, found.snapshots)
        return SessionReading(found.outputs, start + len(tokens))

    async def _write_reading(
        self, session: Session, tokens: array[int], call: Call | None, snapshots: list[Any]
    ) -> None:
        session_id, start, now = session.session_id, session.position, time.time()
        changes = [Advance(session_id, start, now, tokens, call)]
        for snapshot in snapshots:
            dropped = tuple(session.superfluous(snapshot))
            changes.append(Advance(session_id, start + len(tokens), now, snapshot=snapshot, dropped=dropped))
        changes = [
            replace(change, version=session.version + number, fence=session.fence)
            for number, change in enumerate(changes, 1)
        ]
        await self._residence.write(changes, session)

    def _recorded(self, session: Session, target: Target) -> Call | None:
        """What is known of a call of that name; None if it is a new one, at the right position.

        Raises:
            PositionMismatchError: it is new and at the wrong position, or others have gone on since it was broken off.
            RequestMismatchError: the call of that name was another one.
        """
        call = session.calls.get(target.request_id) if target.request_id else None
        if call is None:
            if target.position is not None and target.position != session.position:
                message = (
                    f"session.position: got {target.position}; session {session.session_id!r} is at position "
                    f"{session.position}"
                )
                raise PositionMismatchError(message, session.position)
            return None
        _check_same(call, target)
        if not call.outcome and call.end != session.position:
            message = (
                f"session.request_id: got {call.request_id!r}; this call was interrupted at position {call.end}, and "
                f"session {session.session_id!r} has since advanced to {session.position}. Choose a new request_id"
            )
            raise PositionMismatchError(message, session.position)
        return call


def _beginning_with(begin_token: int | None, session: Session, prompt: array[int]) -> array[int]:
    """What a call brings: where it is the first one the begin token, too."""
    if session.tokens:
        return prompt
    if begin_token is not None:
        return array(TOKEN_TYPE, [begin_token, *prompt])
    if not prompt:
        raise EmptyPromptError(session.session_id)
    return prompt


def _recited(session: Session, call: Call, listener: Receiver, seed: int) -> Listening:
    """A call that has ended is told again."""
    listener.receive(Tokens(tuple(_generated(session, call))))
    listener.receive(Finished(FinishReason(call.outcome), call.end))
    return Listening(seed, call.start, call.prompt_count, lambda: None)


def _generated(session: Session, call: Call) -> array[int]:
    """The tokens that a call has generated."""
    return session.tokens[call.start + call.prompt_count : call.end]


def _reason_to_end(
    session: Session, call: Call, request: GenerationRequest, stop: StopCheck | None
) -> FinishReason | None:
    """Why a call need not go on, if it need not. One that was broken off may have been at its end without having said
    so; `stop` is told what it has generated."""
    if call.outcome:
        return FinishReason(call.outcome)
    generated = _generated(session, call).tolist()
    if stop is not None and stop.feed(generated) is not None:
        return FinishReason.STOP_SEQUENCE
    if generated and request.params.grammar is not None:
        matcher = request.params.grammar.start()
        for token in generated:
            matcher.accept(token)
        if matcher.is_exhausted:
            return FinishReason.CONSTRAINT
    return FinishReason.MAX_TOKENS if call.generated_count >= request.params.max_tokens else None


def _heard(run: Run, listener: Receiver, seed: int) -> Listening:
    """Somebody listens to a generation."""
    run.join(listener)
    return Listening(seed, run.call.start, run.call.prompt_count, partial(run.leave, listener))


def _ended(session: Session, target: Target) -> Call | None:
    """The call of that name if it has ended."""
    call = session.calls.get(target.request_id)
    if call is None or not call.outcome:
        return None
    _check_same(call, target)
    return call


def _check_same(call: Call, target: Target) -> None:
    if call.fingerprint != target.fingerprint:
        raise RequestMismatchError(target.session_id, target.request_id)


def _packed(outputs: NDArray[Any]) -> bytes:
    header = f"{outputs.dtype.str}:{','.join(map(str, outputs.shape))}\n".encode()
    return header + outputs.tobytes()


def _unpacked(answer: bytes) -> NDArray[Any]:
    header, _, content = answer.partition(b"\n")
    dtype, _, shape = header.decode().partition(":")
    return np.frombuffer(content, np.dtype(dtype)).reshape([int(size) for size in shape.split(",")])
