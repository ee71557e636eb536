"""A session as a value: its tokens, snapshots of its state, and the calls that it remembers."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field, replace

from elman_server.sessions.snapshots import Snapshot
from elman_server.sessions.token_log import TOKEN_BYTES, TOKEN_TYPE, TokenLog

__all__ = ["OBJECT_BYTES", "REMEMBERED_CALLS", "TOKEN_BYTES", "TOKEN_TYPE", "Call", "Session", "TokenLog"]

REMEMBERED_CALLS = 16 + 1  # with what it keeps of its answers, see `answers`

OBJECT_BYTES = 1000  # approximate size of a session without tokens and states


@dataclass(frozen=True, slots=True)
class Call:
    """A call with a request id, as its session remembers it.

    Attributes:
        request_id: name of the call, unique in its session.
        fingerprint: digest of the request; another request must not use the same request id.
        start: position of the session before the call.
        prompt_count: number of tokens that the call brought.
        generated_count: number of tokens that it has generated.
        outcome: how it finished; "" while it has not.
        answer: what it answered other than tokens.
    """

    request_id: str
    fingerprint: bytes
    start: int
    prompt_count: int
    generated_count: int = 0
    outcome: str = ""
    answer: bytes = b""

    @property
    def end(self) -> int:
        """The position of the session after the tokens of the call."""
        return self.start + self.prompt_count + self.generated_count

    def advanced(self, count: int, outcome: str = "") -> Call:
        """Return the call after it has generated `count` more tokens."""
        return replace(self, generated_count=self.generated_count + count, outcome=outcome)


@dataclass(slots=True)
class Session:
    """A sequence of tokens, and the state of a model that has read them.

    Attributes:
        session_id: its id.
        model: name of the model.
        digest: digest of the model's bundle.
        seed: of calls that bring no seed.
        caller: identity of the caller that owns it.
        created: time of its creation, seconds since 1970.
        used: time when it was last advanced, seconds since 1970.
        tokens: all its tokens.
        snapshots: by ascending position. The first steps need none: they start from the model's initial state.
        calls: by request id, the latest last.
        version: incremented by every change, if its store counts versions.
        fence: the fence of this server's lease; see `Lease`.
    """

    session_id: str
    model: str
    digest: str
    seed: int
    caller: str
    created: float
    used: float
    tokens: TokenLog = field(default_factory=TokenLog)
    snapshots: list[Snapshot] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    version: int = 0
    fence: int = 0

    @property
    def position(self) -> int:
        """The number of tokens, each of which is a step."""
        return len(self.tokens)

    @property
    def size(self) -> int:
        """Approximate bytes of memory that it takes."""
        answers = sum(len(call.answer) for call in self.calls.values())
        states = sum(len(snapshot.state) for snapshot in self.snapshots)
        return OBJECT_BYTES + TOKEN_BYTES * len(self.tokens) + states + answers

    def snapshot_before(self, position: int) -> Snapshot | None:
        """Return the latest snapshot at or before a position."""
        index = bisect_right(self.snapshots, position, key=lambda snapshot: snapshot.position)
        return self.snapshots[index - 1] if index else None

    def generated(self, call: Call) -> array[int]:
        """Return the tokens that a call has generated."""
        return self.tokens[call.start + call.prompt_count : call.end]

    def fork(
        self, session_id: str, position: int, state_position: int, *, seed: int, caller: str, now: float
    ) -> Session:
        """Return a new session with the first tokens of this one.

        Args:
            session_id: id of the new session.
            position: number of tokens.
            state_position: largest number of steps of the state that it starts from.
            seed: seed of the new session.
            caller: its owner.
            now: seconds since 1970.
        """
        snapshot = self.snapshot_before(state_position)
        snapshots = [] if snapshot is None else [snapshot]
        tokens = self.tokens.fork(position)
        return Session(session_id, self.model, self.digest, seed, caller, now, now, tokens, snapshots)
