"""The sessions of a server: which are in memory, who has which, and every call on them.

A session in memory is as the store has it. At most one call at a time advances it; others are told where it is. Those
that nobody has used for longest leave the memory when it gets too much, and come back from the store when they are
called. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from server.scheduling import (
    Finished,
    FinishReason,
    Generation,
    Receiver,
    SamplingParams,
    Tokens,
)
from server.sessions.errors import (
    BundleMismatchError,
    EmptyPromptError,
    PositionMismatchError,
    RequestMismatchError,
    SessionBusyError,
    SessionError,
    SessionExistsError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from server.sessions.file import SessionFile, write_file
from server.sessions.journal import Journal
from server.sessions.reading import SessionModel, beginning, read
from server.sessions.run import Run
from server.sessions.session import (
    TOKEN_TYPE,
    Advance,
    Call,
    Create,
    Delete,
    Rewind,
    Session,
)
from server.sessions.store import Store, Summary

_READ = "read"  # the outcome of a call that has generated nothing
_LEAST_SWEEP, _MOST_SWEEP = 1.0, 60.0  # seconds between two looks for sessions whose time is over

_log = structlog.get_logger(__name__)
T = TypeVar("T")


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
        self._resident: OrderedDict[str, Session] = OrderedDict()  # the least recently used first
        self._resident_bytes = 0
        self._loading: dict[str, asyncio.Task[Session | None]] = {}
        self._busy: dict[str, Run | None] = {}  # a Run, or something shorter
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to delete sessions whose time is over."""
        if self._options.time_to_live:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def close(self) -> None:
        """Return when everything is written. No call may be under way."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._journal.close()
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
        async with _Reserved(self, session.session_id, caller):
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
        async with _Reserved(self, new := _new(new_id), caller):
            source = await self._suitable(session_id, model)
            position = source.position if position is None else position
            _check_reaches(source, position)
            seed = source.seed if seed is None else seed
            return await self._add(
                source.forked(new, position, position - model.lag, seed=seed, caller=caller, now=time.time())
            )

    async def restore(self, file: SessionFile, model: SessionModel, session_id: str, *, caller: str) -> Session:
        """A new session from a file.

        Raises:
            SessionExistsError, SessionLimitError, BundleMismatchError: see there.
            SessionFileError: its state is not one of this model.
        """
        now = time.time()
        session = file.session(model, session_id or file.session_id, caller=caller, now=now)
        async with _Reserved(self, session.session_id, caller):
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
        session = await self._find(session_id)
        if session is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}")
        return session

    async def page(self, after: str, count: int) -> list[Summary]:
        """The first `count` sessions whose ids come after `after`."""
        return await self._ask(self._store.page, after, count)

    def is_running(self, session_id: str) -> bool:
        """Whether a call is under way on it."""
        return session_id in self._busy

    async def delete(self, session_id: str) -> None:
        """Forget a session; a generation on it is told so.

        Raises:
            SessionNotFoundError: there is none.
            SessionBusyError: a call is under way that cannot be broken off.
        """
        while True:
            session = await self.get(session_id)
            run = self._busy.get(session_id)
            if run is None:
                break
            run.stop(SessionNotFoundError(f"session {session_id!r} has been deleted"))
            await run.over.wait()
        self._claim(session)
        try:
            await self._journal.written(Delete(session_id))
            self._forget(session_id)
        finally:
            self._release(session_id)

    async def rewind(self, session_id: str, model: SessionModel, position: int) -> Session:
        """Take a session back.

        Raises:
            SessionNotFoundError, BundleMismatchError, SessionBusyError: see there.
            PositionMismatchError: it does not reach so far.
        """
        session = await self._idle(session_id, model)
        self._claim(session)
        try:
            _check_reaches(session, position)
            change = Rewind(session_id, position, position - model.lag)
            await self._journal.written(change)
            self._take(session, change)
        finally:
            self._release(session_id)
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
        seed_used = session.seed if seed is None else seed
        run = self._busy.get(target.session_id)
        if run is not None and target.request_id and run.call.request_id == target.request_id:
            _check_same(run.call, target)
            return _joined(run, listener, seed_used)
        self._check_free(session)
        call = self._recorded(session, target)
        if call is None:
            if not session.tokens and begin_token is not None:
                prompt = array(TOKEN_TYPE, [begin_token, *prompt])
            if not session.tokens and not prompt:
                raise EmptyPromptError(f"session {session.session_id!r} is empty, and so is the prompt")
            call = Call(target.request_id, target.fingerprint, session.position, len(prompt))
        else:
            prompt = array(TOKEN_TYPE)  # The session holds it.
            if call.generated_count >= params.max_tokens and not call.outcome:
                call = replace(call, outcome=FinishReason.MAX_TOKENS.value)
        if call.outcome:
            tokens = session.tokens[call.start + call.prompt_count : call.end]
            listener.receive(Tokens(tuple(tokens)))
            listener.receive(Finished(FinishReason(call.outcome), call.end))
            return Listening(seed_used, call.start, call.prompt_count, lambda: None)
        begin = beginning(session, model)
        run = Run(
            session,
            call,
            journal=self._journal,
            layout=model.layout,
            take=self._take,
            end=lambda failed: self._ended(session.session_id, failed),
        )
        run.start(
            model.scheduler,
            Generation(
                np.concatenate([begin.backlog, np.array(prompt, np.int64)]),
                run,
                begin.state,
                position=begin.position,
                keep_state=True,
                snapshot_steps=self._options.snapshot_steps,
                params=replace(params, seed=seed_used, max_tokens=params.max_tokens - call.generated_count),
                interval=interval,
            ),
            prompt,
        )
        self._busy[session.session_id] = run
        return _joined(run, listener, seed_used)

    async def read(
        self, model: SessionModel, target: Target, tokens: array[int], *, every_step: bool
    ) -> SessionReading:
        """Have a session read some tokens, or give back what a call of that name has been shown already.

        Raises:
            SessionNotFoundError, BundleMismatchError, SessionBusyError: see there.
            PositionMismatchError, RequestMismatchError: see there.
            QueueFullError, SchedulerStoppedError, SequenceFailedError: nothing has been read.
        """
        session = await self._idle(target.session_id, model)
        self._check_free(session)
        call = self._recorded(session, target)
        if call is not None:
            return SessionReading(_unpacked(call.answer), call.end)
        self._claim(session)
        try:
            steps = self._options.snapshot_steps
            found = await read(session, model, tokens, every_step=every_step, shown=True, snapshot_steps=steps)
            start = session.position
            answer = _packed(found.outputs) if target.request_id else b""
            call = Call(target.request_id, target.fingerprint, start, len(tokens), 0, _READ, answer)
            await self._write_reading(session, tokens, call if target.request_id else None, found.snapshots)
            return SessionReading(found.outputs, start + len(tokens))
        finally:
            self._release(session.session_id)

    async def _write_reading(
        self, session: Session, tokens: array[int], call: Call | None, snapshots: list[Any]
    ) -> None:
        session_id, start, now = session.session_id, session.position, time.time()
        changes = [Advance(session_id, start, now, tokens, call)]
        for snapshot in snapshots:
            dropped = tuple(session.superfluous(snapshot))
            changes.append(Advance(session_id, start + len(tokens), now, snapshot=snapshot, dropped=dropped))
        try:
            await asyncio.gather(*(self._journal.written(change) for change in changes))  # In one transaction.
        except StoreError:
            self._forget(session_id)
            raise
        for change in changes:
            self._take(session, change)

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

    # Who has which session.

    def _check_free(self, session: Session) -> None:
        if session.session_id in self._busy:
            message = f"a call is under way on session {session.session_id!r}, which is at position {session.position}"
            raise SessionBusyError(message, session.position)

    def _claim(self, session: Session) -> None:
        self._check_free(session)
        self._busy[session.session_id] = None

    async def _idle(self, session_id: str, model: SessionModel) -> Session:
        """A session of this model's bundle on which nothing is under way but what somebody listens to."""
        while True:
            session = await self._suitable(session_id, model)
            run = self._busy.get(session_id)
            if run is None or not run.abandoned:
                return session
            await run.over.wait()

    def _release(self, session_id: str) -> None:
        self._busy.pop(session_id, None)
        self._evict()

    def _ended(self, session_id: str, failed: bool) -> None:
        """A generation is over."""
        self._busy.pop(session_id, None)
        if failed:  # What is in memory may be ahead of what the store can give back.
            self._forget(session_id)
        self._evict()

    # Which are in memory.

    async def _suitable(self, session_id: str, model: SessionModel) -> Session:
        """A session of this model's very bundle."""
        session = await self.get(session_id)
        if session.model != model.name or session.digest != model.digest:
            raise BundleMismatchError(
                f"session {session_id!r} began with {session.model!r} {session.digest}, this server has {model.name!r} "
                f"{model.digest}: a state means nothing to another bundle"
            )
        return session

    async def _find(self, session_id: str) -> Session | None:
        session = self._resident.get(session_id)
        if session is not None:
            self._resident.move_to_end(session_id)
            return session
        if not self._store.blocks:
            return self._keep(self._store.load(session_id))
        if session_id not in self._loading:
            self._loading[session_id] = asyncio.get_running_loop().create_task(self._load(session_id))
        return await asyncio.shield(self._loading[session_id])

    async def _load(self, session_id: str) -> Session | None:
        try:
            return self._keep(await asyncio.to_thread(self._store.load, session_id))
        finally:
            del self._loading[session_id]

    def _keep(self, session: Session | None) -> Session | None:
        if session is not None:
            self._resident[session.session_id] = session
            self._resident_bytes += session.size
            self._evict(but=session.session_id)
        return session

    def _forget(self, session_id: str) -> None:
        session = self._resident.pop(session_id, None)
        if session is not None:
            self._resident_bytes -= session.size

    def _evict(self, but: str = "") -> None:
        """Let sessions go from the memory, the least recently used first."""
        if self._resident_bytes <= self._options.memory_bytes:
            return
        for session_id in list(self._resident):
            if self._resident_bytes <= self._options.memory_bytes:
                return
            if session_id not in self._busy and session_id != but:
                self._forget(session_id)

    def _take(self, session: Session, change: Advance | Rewind) -> None:
        """A session goes through a change that the store has."""
        before = session.size
        session.take(change)
        if session.session_id in self._resident:
            self._resident_bytes += session.size - before

    async def _add(self, session: Session) -> Session:
        await self._journal.written(Create(session))
        self._keep(session)
        return session

    async def _ask(self, question: Callable[..., T], *given: Any) -> T:
        return await asyncio.to_thread(question, *given) if self._store.blocks else question(*given)

    async def _sweep(self) -> None:
        live = self._options.time_to_live
        while True:
            await asyncio.sleep(min(max(live / 4, _LEAST_SWEEP), _MOST_SWEEP))
            try:
                for session_id in await self._ask(self._store.expired, time.time() - live):
                    if session_id not in self._busy:
                        await self.delete(session_id)
                        _log.info("session expired", session=session_id)
            except SessionError as error:
                _log.warning("sessions not swept", error=str(error))


class _Reserved:
    """That an id is being given to a new session: nobody else gets it meanwhile."""

    def __init__(self, sessions: Sessions, session_id: str, caller: str) -> None:
        self._sessions = sessions
        self._session_id = session_id
        self._caller = caller

    async def __aenter__(self) -> None:
        sessions, session_id = self._sessions, self._session_id
        if session_id in sessions._busy or await sessions._find(session_id) is not None or session_id in sessions._busy:
            raise SessionExistsError(f"there is a session {session_id!r} already")
        sessions._busy[session_id] = None
        limit = sessions._options.per_caller
        if limit and await sessions._ask(sessions._store.count, self._caller) >= limit:
            sessions._busy.pop(session_id)
            raise SessionLimitError(f"{self._caller!r} has {limit} sessions already, as many as one caller may have")

    async def __aexit__(self, *_: object) -> None:
        self._sessions._release(self._session_id)


def _new(session_id: str) -> str:
    return session_id or secrets.token_hex(8)


def _joined(run: Run, listener: Receiver, seed: int) -> Listening:
    run.join(listener)
    return Listening(seed, run.call.start, run.call.prompt_count, lambda: run.leave(listener))


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
