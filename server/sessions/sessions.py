"""Every call on sessions: what makes them, what looks at them, what continues them.

    Residence (who has the session) -> Run or read (scheduling) -> Journal (store) -> the session in memory

Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from server.scheduling import (
    Finished,
    FinishReason,
    Generation,
    Receiver,
    SamplingParams,
    SchedulerStoppedError,
    Tokens,
)
from server.sessions.errors import (
    BundleMismatchError,
    EmptyPromptError,
    PositionMismatchError,
    RequestMismatchError,
    SessionDamagedError,
    SessionError,
    SessionExistsError,
    SessionLimitError,
    SessionNotFoundError,
    StoreConflictError,
    StoreError,
)
from server.sessions.file import SessionFile, write_file
from server.sessions.journal import Journal
from server.sessions.reading import SessionModel, beginning, read
from server.sessions.residence import Residence
from server.sessions.run import Run
from server.sessions.session import (
    TOKEN_TYPE,
    Advance,
    Call,
    Change,
    Create,
    Delete,
    Rewind,
    Session,
)
from server.sessions.store import Store, Summary

_READ = "read"  # the outcome of a call that has generated nothing
_LEAST_SWEEP, _MOST_SWEEP = 1.0, 60.0  # seconds between two looks for sessions whose time is over

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SessionOptions:
    """How sessions are kept.

    Attributes:
        memory_bytes: about how much memory sessions may take that nobody is using.
        time_to_live: seconds after which a session that nobody has used is deleted; 0: never.
        per_caller: how many sessions one caller may have; 0: as many as they like.
        snapshot_steps: after so many steps, about, the state is kept: what is computed again after a crash.
    """

    memory_bytes: int = 256 * 1024 * 1024
    time_to_live: float = 0.0
    per_caller: int = 0
    snapshot_steps: int = 512


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


class Sessions:
    """Keeps sessions.

    Args:
        store: where they are kept.
        options: how.
    """

    def __init__(self, store: Store, options: SessionOptions) -> None:
        self._store = store
        self._options = options
        self._journal = Journal(store)
        self._residence = Residence(store, options.memory_bytes)
        # Of the callers of sessions that are being made; under the lock they and those in the store are all there are.
        self._making: Counter[str] = Counter()
        self._counting = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew leases and to delete sessions whose time is over."""
        self._residence.start()
        if self._options.time_to_live:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def hand_over(self) -> None:
        """Break off what can be continued by another server, which it will be if its client comes again."""
        if self._store.shared:
            for run in self._residence.runs:
                if run.call.request_id:
                    run.stop(SchedulerStoppedError())

    async def close(self) -> None:
        """Return when everything is written. No call may be under way."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._journal.close()
        await self._residence.close()
        self._store.close()

    # What makes sessions, and what looks at them.

    async def create(
        self, model: SessionModel, session_id: str, tokens: array[int], *, seed: int | None, caller: str
    ) -> Session:
        """A new session that holds some tokens, read already.

        Args:
            model: its model.
            session_id: its id; "" for a random one.
            tokens: may be none.
            seed: None for a random one.
            caller: whose it is.

        Raises:
            SessionExistsError: there is one of that id.
            SessionLimitError: the caller has as many as they may.
            QueueFullError, SchedulerStoppedError, SequenceFailedError: the prompt has not been read.
        """
        now = time.time()
        seed = secrets.randbits(63) if seed is None else seed
        session = Session(_new(session_id), model.name, model.digest, seed, caller, now, now)
        async with self._reserved(session.session_id, caller):
            if tokens:
                steps = self._options.snapshot_steps
                found = await read(session, model, tokens, every_step=False, shown=False, snapshot_steps=steps)
                session.tokens.extend(tokens)
                session.snapshots = found.snapshots
            return await self._add(session)

    async def fork(
        self,
        session_id: str,
        model: SessionModel,
        new_id: str,
        *,
        position: int | None,
        seed: int | None,
        caller: str,
    ) -> Session:
        """A new session that holds what another one holds; nothing is computed again.

        Raises:
            SessionNotFoundError, SessionExistsError, SessionLimitError, BundleMismatchError: see there.
            PositionMismatchError: the other one does not reach so far.
        """
        async with self._reserved(new := _new(new_id), caller):
            source = await self._suitable(session_id, model)
            position = source.position if position is None else position
            _check_reaches(source, position)
            seed = source.seed if seed is None else seed
            return await self._add(
                source.forked(new, position, position - model.lag, seed=seed, caller=caller, now=time.time())
            )

    async def restore(
        self, file: SessionFile, model: SessionModel, session_id: str, *, longest: int, caller: str
    ) -> Session:
        """A new session from a file. See `SessionFile.session`.

        Raises:
            SessionExistsError, SessionLimitError, BundleMismatchError: see there.
            SessionFileError: its state is not one of this model.
        """
        now = time.time()
        session = file.session(model, session_id or file.session_id, longest=longest, caller=caller, now=now)
        async with self._reserved(session.session_id, caller):
            return await self._add(session)

    async def export(self, session_id: str, model: SessionModel) -> bytes:
        """A session as a file.

        Raises:
            SessionNotFoundError, BundleMismatchError: see there.
        """
        session = await self._suitable(session_id, model)
        return write_file(session, beginning(session, model), model)

    async def get(self, session_id: str) -> Session:
        """A session as the store has it. To be looked at only.

        Raises:
            SessionNotFoundError: there is none.
        """
        return await self._residence.get(session_id)

    async def page(self, after: str, count: int) -> list[Summary]:
        """The first `count` sessions whose ids come after `after`."""
        return await self._residence.ask(self._store.page, after, count)

    def is_running(self, session_id: str) -> bool:
        """Whether a call is under way on it, on this server."""
        return self._residence.is_busy(session_id)

    async def delete(self, session_id: str) -> None:
        """Forget a session; a generation on it is told so.

        Raises:
            SessionNotFoundError: there is none.
            SessionBusyError: a call is under way that cannot be broken off.
        """
        residence = self._residence
        try:
            session = await residence.get(session_id)
        except SessionDamagedError:  # There is nothing that could be harmed, and the id may be wanted.
            await self._write([Delete(session_id, (await residence.lease(session_id)).fence)], None)
            return
        while (run := residence.run_of(session_id)) is not None:
            run.stop(SessionNotFoundError(f"session {session_id!r} has been deleted"))
            await run.over.wait()
            session = await residence.get(session_id)
        while await residence.wait_for_turn(session_id):
            session = await residence.get(session_id)
        async with residence.claimed(session) as session:
            await self._write([Delete(session_id, session.fence)], session)

    async def rewind(self, session_id: str, model: SessionModel, position: int) -> Session:
        """Take a session back.

        Raises:
            SessionNotFoundError, BundleMismatchError, SessionBusyError: see there.
            PositionMismatchError: it does not reach so far.
        """
        async with self._residence.claimed(await self._idle(session_id, model)) as session:
            _check_reaches(session, position)
            change = Rewind(session_id, position, position - model.lag, session.version + 1, session.fence)
            await self._write([change], session)
        return session

    # What continues them.

    async def generate(
        self,
        model: SessionModel,
        target: Target,
        prompt: array[int],
        listener: Receiver,
        *,
        params: SamplingParams,
        seed: int | None,
        begin_token: int | None,
        interval: float | None,
    ) -> Listening:
        """Generate on a session, or listen to what has been generated already by a call of that name.

        Args:
            model: the session's model.
            target: which session.
            prompt: what follows what it holds; may be nothing, unless the session is empty.
            listener: is told the tokens of the whole call, from its first one on, and its end.
            params: how to choose tokens; its seed does not matter.
            seed: of the call; None for the session's.
            begin_token: what an empty session begins with, if anything.
            interval: for how long tokens may gather; see `Generation`.

        Raises:
            SessionNotFoundError, BundleMismatchError, SessionBusyError: see there.
            PositionMismatchError, RequestMismatchError: see there.
            EmptyPromptError: there is nothing to continue.
            QueueFullError, SchedulerStoppedError: it does not run.
        """
        session = await self._idle(target.session_id, model)
        params = replace(params, seed=session.seed if seed is None else seed)
        ended = session.calls.get(target.request_id)
        if ended is not None and ended.outcome:
            _check_same(ended, target)
            return _recited(session, ended, listener, params.seed)
        run = self._residence.run_of(target.session_id)
        if run is not None and target.request_id and run.call.request_id == target.request_id:
            _check_same(run.call, target)
        else:
            session = await self._residence.claim(session)
            try:
                call = self._recorded(session, target)
                if call is None:
                    prompt = _beginning_with(begin_token, session, prompt)
                    call = Call(target.request_id, target.fingerprint, session.position, len(prompt))
                else:
                    prompt = array(TOKEN_TYPE)  # The session holds it.
                if call.outcome or call.generated_count >= params.max_tokens:
                    self._residence.release(session.session_id)
                    return _recited(session, call, listener, params.seed)
                run = self._run(model, session, call, prompt, params, interval)
            except BaseException:
                self._residence.release(session.session_id)
                raise
        run.join(listener)
        return Listening(params.seed, run.call.start, run.call.prompt_count, partial(run.leave, listener))

    def _run(
        self,
        model: SessionModel,
        session: Session,
        call: Call,
        prompt: array[int],
        params: SamplingParams,
        interval: float | None,
    ) -> Run:
        """Have a call generate, from its beginning or from where it was broken off."""
        begin = beginning(session, model)
        run = Run(
            session,
            call,
            journal=self._journal,
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
            snapshot_steps=self._options.snapshot_steps,
            params=replace(params, max_tokens=params.max_tokens - call.generated_count),
            interval=interval,
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
            QueueFullError, SchedulerStoppedError, SequenceFailedError: nothing has been read.
        """
        session = await self._idle(target.session_id, model)
        ended = session.calls.get(target.request_id)
        if ended is not None and ended.outcome:
            _check_same(ended, target)
            return SessionReading(_unpacked(ended.answer), ended.end)
        async with self._residence.claimed(session) as session:
            call = self._recorded(session, target)
            if call is not None:
                return SessionReading(_unpacked(call.answer), call.end)
            steps = self._options.snapshot_steps
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
        await self._write(changes, session)

    def _recorded(self, session: Session, target: Target) -> Call | None:
        """What is known of a call of that name; None if it is a new one, at the right position.

        Raises:
            PositionMismatchError: it is new and at the wrong position, or others have gone on since it was broken off.
            RequestMismatchError: the call of that name was another one.
        """
        call = session.calls.get(target.request_id) if target.request_id else None
        if call is None:
            if target.position is not None and target.position != session.position:
                raise PositionMismatchError(
                    f"session {session.session_id!r} is at position {session.position}, not {target.position}",
                    session.position,
                )
            return None
        _check_same(call, target)
        if not call.outcome and call.end != session.position:
            raise PositionMismatchError(
                f"the call {call.request_id!r} on session {session.session_id!r} was broken off at position {call.end},"
                f" and others have gone on to {session.position}",
                session.position,
            )
        return call

    async def _idle(self, session_id: str, model: SessionModel) -> Session:
        """A session of this model's bundle on which nothing is under way but what somebody listens to."""
        while True:
            session = await self._suitable(session_id, model)
            if not await self._residence.wait_for_turn(session_id):
                return session

    async def _suitable(self, session_id: str, model: SessionModel) -> Session:
        """A session of this model's very bundle."""
        session = await self._residence.get(session_id)
        if session.model != model.name or session.digest != model.digest:
            raise BundleMismatchError(
                f"session {session_id!r} began with {session.model!r} {session.digest}, this server has {model.name!r} "
                f"{model.digest}: a state means nothing to another bundle"
            )
        return session

    @asynccontextmanager
    async def _reserved(self, session_id: str, caller: str) -> AsyncIterator[None]:
        """Have an id for a new session, if the caller may have one."""
        async with self._residence.reserved(session_id):
            await self._count(caller)
            try:
                yield
            except BaseException:
                self._made(caller)
                raise

    async def _count(self, caller: str) -> None:
        """Count a session that is to be made."""
        limit = self._options.per_caller
        async with self._counting if limit else nullcontext():
            if limit and await self._residence.ask(self._store.count, caller) + self._making[caller] >= limit:
                raise SessionLimitError(f"{caller!r} has {limit} sessions already, as many as one caller may have")
            self._making[caller] += 1

    def _made(self, caller: str) -> None:
        """A session that was being made is in the store, or will never be."""
        self._making[caller] -= 1
        if not self._making[caller]:
            del self._making[caller]

    async def _add(self, session: Session) -> Session:
        try:
            async with self._counting if self._options.per_caller else nullcontext():
                await self._write([Create(session)], session)
        except StoreConflictError as error:
            raise SessionExistsError(f"there is a session {session.session_id!r} already") from error
        return session

    async def _write(self, changes: Sequence[Change], session: Session | None) -> None:
        """Have changes kept, and what is in memory go through them. A session of which something was not kept goes.

        Raises:
            StoreError: something was not kept.
        """

        def kept(change: Change) -> None:
            if isinstance(change, Create):
                self._made(change.session.caller)
                self._residence.keep(change.session)
            elif isinstance(change, Delete):
                self._residence.forget(change.session_id)
            elif session is not None:
                self._residence.take(session, change)

        try:
            await self._journal.written(changes, kept)
        except StoreError:
            if session is not None:
                self._residence.forget(session.session_id)
            raise

    async def _sweep(self) -> None:
        live = self._options.time_to_live
        while True:
            await asyncio.sleep(min(max(live / 4, _LEAST_SWEEP), _MOST_SWEEP))
            try:
                expired = await self._residence.ask(self._store.expired, time.time() - live)
            except SessionError as error:
                _log.warning("sessions not swept", error=str(error))
                continue
            for session_id in expired:
                await self._expire(session_id)

    async def _expire(self, session_id: str) -> None:
        try:
            session = await self._residence.get(session_id)
            async with self._residence.claimed(session) as session:
                if session.used < time.time() - self._options.time_to_live:  # Nobody has used it since we looked.
                    await self._write([Delete(session_id, session.fence)], session)
                    _log.info("session expired", session=session_id)
        except SessionError as error:  # Another server was faster, or somebody uses it again.
            _log.info("session not expired", session=session_id, error=str(error))


def _new(session_id: str) -> str:
    return session_id or secrets.token_hex(8)


def _beginning_with(begin_token: int | None, session: Session, prompt: array[int]) -> array[int]:
    """What a call brings: where it is the first one the begin token, too."""
    if session.tokens:
        return prompt
    if begin_token is not None:
        return array(TOKEN_TYPE, [begin_token, *prompt])
    if not prompt:
        raise EmptyPromptError(f"session {session.session_id!r} is empty, and so is the prompt")
    return prompt


def _recited(session: Session, call: Call, listener: Receiver, seed: int) -> Listening:
    """A call that has ended is told again."""
    listener.receive(Tokens(tuple(session.tokens[call.start + call.prompt_count : call.end])))
    listener.receive(Finished(FinishReason(call.outcome or FinishReason.MAX_TOKENS), call.end))
    return Listening(seed, call.start, call.prompt_count, lambda: None)


def _check_reaches(session: Session, position: int) -> None:
    if not 0 <= position <= session.position:
        raise PositionMismatchError(
            f"session {session.session_id!r} reaches from 0 to {session.position}, not to {position}", session.position
        )


def _check_same(call: Call, target: Target) -> None:
    if call.fingerprint != target.fingerprint:
        raise RequestMismatchError(
            f"the call {target.request_id!r} on session {target.session_id!r} asked for something else: a new call "
            "needs a new request_id"
        )


def _packed(outputs: NDArray[Any]) -> bytes:
    header = f"{outputs.dtype.str}:{','.join(map(str, outputs.shape))}\n".encode()
    return header + outputs.tobytes()


def _unpacked(answer: bytes) -> NDArray[Any]:
    header, _, content = answer.partition(b"\n")
    dtype, _, shape = header.decode().partition(":")
    return np.frombuffer(content, np.dtype(dtype)).reshape([int(size) for size in shape.split(",")])
