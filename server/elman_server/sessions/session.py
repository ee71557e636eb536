"""A session as a value: its tokens, snapshots of its state, the calls it remembers; and the changes it goes through.

A change is what a store keeps. A session in memory takes the same changes, after the store has them: what is in memory
is never ahead of the store.

    Create -> Advance* -> (Rewind -> Advance*)* -> Delete
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOKEN_TYPE = "i"
TOKEN_BYTES = array(TOKEN_TYPE).itemsize
REMEMBERED_CALLS = 16
_MOST_SNAPSHOTS = 16
_OBJECT_BYTES = 1000  # about what a session's objects take beside tokens and states


class StateLayout:
    """How a model's state is one row of bytes: its arrays, one after the other.

    Args:
        arrays: dtype and shape by state input name.
    """

    def __init__(self, arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
        self._arrays = dict(arrays)
        self.size = sum(_size(dtype, shape) for dtype, shape in self._arrays.values())

    @property
    def arrays(self) -> Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        return self._arrays

    def pack(self, state: Mapping[str, NDArray[Any]]) -> bytes:
        return b"".join(np.ascontiguousarray(state[name]).tobytes() for name in self._arrays)

    def unpack(self, packed: bytes) -> dict[str, NDArray[Any]]:
        """The arrays; they share the bytes' memory."""
        state, offset = {}, 0
        for name, (dtype, shape) in self._arrays.items():
            size = _size(dtype, shape)
            state[name] = np.frombuffer(packed, dtype, size // dtype.itemsize, offset).reshape(shape)
            offset += size
        return state


def _size(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    return int(dtype.itemsize * np.prod(shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after so many steps, packed."""

    position: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """What a session remembers of a call.

    Attributes:
        request_id: its name.
        fingerprint: of what it asked for: under the same name nothing else may be asked for.
        start: the session's position before it.
        prompt_count: how many tokens it brought.
        generated_count: how many it has generated.
        outcome: how it ended; "" as long as it has not.
        answer: what it was answered beside tokens.
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
        """The session's position after what it has done."""
        return self.start + self.prompt_count + self.generated_count


@dataclass(slots=True)
class Session:
    """A sequence of tokens, and the state that a model is in when it has read them.

    Attributes:
        session_id: by which calls name it.
        model: the model's name.
        digest: of the model's bundle.
        seed: of calls that do not bring their own.
        caller: whose it is.
        created: when it was made, seconds since 1970.
        used: when it was last advanced.
        tokens: all of them.
        snapshots: by ascending position; the first steps need none, they start from the model's initial state.
        calls: by request_id, the latest last.
        version: grows by one with every change, as far as its store counts them.
        fence: the number under which this server has it; see `Lease`.
    """

    session_id: str
    model: str
    digest: str
    seed: int
    caller: str
    created: float
    used: float
    tokens: array[int] = field(default_factory=lambda: array(TOKEN_TYPE))
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
        """About how many bytes of memory it takes."""
        answers = sum(len(call.answer) for call in self.calls.values())
        states = sum(len(snapshot.state) for snapshot in self.snapshots)
        return _OBJECT_BYTES + TOKEN_BYTES * len(self.tokens) + states + answers

    def snapshot_before(self, position: int) -> Snapshot | None:
        """The latest one at or before a position."""
        index = bisect_right(self.snapshots, position, key=lambda snapshot: snapshot.position)
        return self.snapshots[index - 1] if index else None

    def forked(
        self, session_id: str, position: int, state_position: int, *, seed: int, caller: str, now: float
    ) -> Session:
        """A new session of the first tokens of this one, with the latest state of at most `state_position` steps."""
        snapshot = self.snapshot_before(state_position)
        snapshots = [] if snapshot is None else [snapshot]
        tokens = self.tokens[:position]
        return Session(session_id, self.model, self.digest, seed, caller, now, now, tokens, snapshots)

    def superfluous(self, snapshot: Snapshot) -> list[int]:
        """The positions of snapshots that give way to a new one: where there are too many, that without which the way
        back is least longer, by how far back it is."""
        kept = sorted({*(known.position for known in self.snapshots), snapshot.position})
        dropped = []
        while len(kept) > _MOST_SNAPSHOTS:
            gaps = [
                (after - before) / (kept[-1] - position)
                for before, position, after in zip([0, *kept], kept[:-1], kept[1:], strict=False)
            ]
            dropped.append(kept.pop(gaps.index(min(gaps))))
        return dropped

    def take(self, change: Advance | Rewind) -> None:
        """Go through a change."""
        self.version = change.version
        if isinstance(change, Rewind):
            del self.tokens[change.position :]
            self.snapshots = [known for known in self.snapshots if known.position <= change.state_position]
            self.calls = {
                name: call for name, call in self.calls.items() if call.end <= change.position and call.outcome
            }
            return
        self.used = change.used
        self.tokens.extend(change.tokens)
        if change.snapshot is not None:
            gone = {*change.dropped, change.snapshot.position}
            kept = [known for known in self.snapshots if known.position not in gone]
            self.snapshots = sorted([*kept, change.snapshot], key=lambda known: known.position)
        if change.call is not None:
            self.calls.pop(change.call.request_id, None)
            while len(self.calls) >= REMEMBERED_CALLS:
                del self.calls[next(iter(self.calls))]
            self.calls[change.call.request_id] = change.call


@dataclass(frozen=True, slots=True)
class Create:
    """A session begins to be, with all it holds."""

    session: Session

    @property
    def session_id(self) -> str:
        return self.session.session_id


@dataclass(frozen=True, slots=True)
class Advance:
    """A session goes on.

    Attributes:
        session_id: which.
        start: its position before.
        tokens: what is added to its tokens; may be nothing.
        used: when.
        call: the call that does it, as it stands now, if it has a name.
        snapshot: a state to keep.
        dropped: the positions of the states that give way to it.
        version: the session's after this change.
        fence: the number under which the server has the session.
    """

    session_id: str
    start: int
    used: float
    tokens: array[int] = field(default_factory=lambda: array(TOKEN_TYPE))
    call: Call | None = None
    snapshot: Snapshot | None = None
    dropped: tuple[int, ...] = ()
    version: int = 0
    fence: int = 0

    @property
    def end(self) -> int:
        """The session's position after it."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Rewind:
    """A session goes back.

    Attributes:
        session_id: which.
        position: where to.
        state_position: states of more steps are dropped.
        version: the session's after this change.
        fence: the number under which the server has the session.
    """

    session_id: str
    position: int
    state_position: int
    version: int = 0
    fence: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """A session ceases to be.

    Attributes:
        session_id: which.
        fence: the number under which the server has the session.
    """

    session_id: str
    fence: int = 0


Change = Create | Advance | Rewind | Delete


def thinned(snapshots: list[Snapshot]) -> list[Snapshot]:
    """As many of a reading's snapshots as a session keeps, spread evenly, and the last."""
    spread = -(-len(snapshots) // _MOST_SNAPSHOTS)
    return snapshots[::-1][::spread][::-1] if spread > 1 else snapshots


def advanced(call: Call, generated: int, outcome: str = "") -> Call:
    """A call that has generated some more tokens."""
    return replace(call, generated_count=call.generated_count + generated, outcome=outcome)
