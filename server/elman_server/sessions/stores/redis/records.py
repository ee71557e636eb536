"""What Redis stores of a session: packed under checksums, and read as far as it is undamaged."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from redis.exceptions import ResponseError

from elman_server.sessions.changes import Advance
from elman_server.sessions.session import TOKEN_BYTES, TOKEN_TYPE, Call, Session, TokenLog
from elman_server.sessions.snapshots import Snapshot
from elman_server.sessions.stores.interface import Summary
from elman_server.sessions.stores.redis.connection import raise_first
from elman_server.sessions.stores.redis.keys import caller_key

_PIECE_TOKENS = 1024  # a longer prompt is several pieces


class StoredSession:
    """A session as it was read.

    Args:
        session_id: its id.
        header, log, states, calls, order: the values of its keys; see `keys`.

    Attributes:
        session: what is undamaged.
        position: its position according to its header.
        piece_count: number of undamaged pieces of the log.
        is_complete: whether all its tokens are undamaged.

    Raises:
        LookupError, ValueError: the header is damaged.
    """

    def __init__(
        self,
        session_id: str,
        header: Mapping[bytes, bytes],
        log: Sequence[bytes],
        states: Mapping[bytes, bytes],
        calls: Mapping[bytes, bytes],
        order: Sequence[bytes],
    ) -> None:
        self.session = session = _session_of(header)
        if session.session_id != session_id or header[b"checksum"].decode() != _identity_checksum(session):
            raise ValueError("the checksum of the header does not match")
        self.position = int(header[b"position"])
        session.version = int(header[b"version"])
        tokens, self.piece_count = _undamaged_tokens(log)
        session.tokens = TokenLog(tokens)
        self.is_complete = self.piece_count == len(log) and session.position == self.position
        session.tokens.truncate(self.position)
        snapshots = [_unpack_snapshot(*entry) for entry in states.items()]
        session.snapshots = sorted(
            (snapshot for snapshot in snapshots if snapshot is not None and snapshot.position <= session.position),
            key=lambda snapshot: snapshot.position,
        )
        for request_id in order:
            call = _unpack_call(request_id, calls.get(request_id, b""))
            if call is not None and call.end <= session.position:
                session.calls[call.request_id] = call


def create_arguments(session: Session) -> list[object]:
    """Return the arguments of CREATE after the token."""
    header = {
        "id": session.session_id,
        "model": session.model,
        "digest": session.digest,
        "seed": session.seed,
        "caller": session.caller,
        "created": repr(float(session.created)),
        "checksum": _identity_checksum(session),
        "used": repr(float(session.used)),
        "position": session.position,
        "version": session.version,
        "base": session.version,
    }
    return [
        session.session_id,
        caller_key(session.caller),
        *_counted(list(header.items())),
        *_counted([_pack_snapshot(snapshot) for snapshot in session.snapshots]),
        *_counted([_pack_call(call) for call in session.calls.values()]),
        *_pack_tokens(0, session.tokens[:]),
    ]


def advance_arguments(change: Advance) -> list[object]:
    """Return the arguments of ADVANCE after the version and the fence."""
    snapshots = [] if change.snapshot is None else [change.snapshot]
    return [
        change.session_id,
        change.start,
        change.end,
        repr(float(change.used)),
        *_counted([(position,) for position in change.dropped] if snapshots else []),
        *_counted([_pack_snapshot(snapshot) for snapshot in snapshots]),
        *_counted([] if change.call is None else [_pack_call(change.call)]),
        *_pack_tokens(change.start, change.tokens),
    ]


def _counted(entries: Sequence[tuple[object, ...]]) -> list[object]:
    return [len(entries), *(part for entry in entries for part in entry)]


def _session_of(header: Mapping[bytes, bytes]) -> Session:
    values = {name.decode(): value.decode() for name, value in header.items()}
    return Session(
        values["id"],
        values["model"],
        values["digest"],
        int(values["seed"]),
        values["caller"],
        float(values["created"]),
        float(values["used"]),
    )


def summary_of(header: Any) -> Summary | None:
    """Return the summary of a session; None if there is no such session, or its header is damaged.

    Args:
        header: the answer to HGETALL.
    """
    try:
        raise_first([header])
        session, position = _session_of(header), int(header[b"position"])
    except (ResponseError, LookupError, ValueError):
        return None
    return Summary(
        session.session_id, session.model, session.digest, session.seed, session.created, session.used, position
    )


def _identity_checksum(session: Session) -> str:
    """Return the checksum of the values that never change."""
    identity = (session.session_id, session.model, session.digest, session.seed, session.caller, float(session.created))
    return f"{crc32(repr(identity).encode()):08x}"


def _pack_tokens(start: int, tokens: array[int]) -> list[bytes]:
    return [
        _pack_piece(start + at, tokens[at : at + _PIECE_TOKENS].tobytes())
        for at in range(0, len(tokens), _PIECE_TOKENS)
    ]


def _pack_piece(start: int, tokens: bytes) -> bytes:
    """Return a piece of the log; Lua's `packed` makes the same."""
    checksum = hashlib.sha1(b"%d:%b" % (start, tokens)).hexdigest()[:8]
    return b"%d:%b:%b" % (start, checksum.encode(), tokens)


def _undamaged_tokens(log: Sequence[bytes]) -> tuple[array[int], int]:
    """Return the tokens before the first piece that is missing or damaged, and the number of their pieces."""
    tokens = array(TOKEN_TYPE)
    for number, piece in enumerate(log):
        part = piece.split(b":", 2)[-1]
        if piece != _pack_piece(len(tokens), part) or len(part) % TOKEN_BYTES:
            return tokens, number
        tokens.frombytes(part)
    return tokens, len(log)


def _pack_snapshot(snapshot: Snapshot) -> tuple[object, ...]:
    return snapshot.position, b"%08x:%b" % (crc32(snapshot.state, snapshot.position), snapshot.state)


def _unpack_snapshot(position: bytes, packed: bytes) -> Snapshot | None:
    """Return a snapshot; None if it is damaged."""
    if not position.isdigit():
        return None
    snapshot = Snapshot(int(position), packed.partition(b":")[2])
    return snapshot if _pack_snapshot(snapshot) == (int(position), packed) else None


def _pack_call(call: Call) -> tuple[object, ...]:
    values = [call.fingerprint.hex(), call.start, call.prompt_count, call.generated_count, call.outcome]
    prefix = b"%d:%d:" % (call.end, bool(call.outcome))
    content = json.dumps(values).encode() + b"\n" + call.answer
    checksum = crc32(content, crc32(prefix, crc32(call.request_id.encode())))
    return call.request_id, b"%b%08x:%b" % (prefix, checksum, content)


def _unpack_call(request_id: bytes, packed: bytes) -> Call | None:
    """Return a call; None if it is damaged."""
    values, _, answer = packed.partition(b"\n")
    try:
        fingerprint, start, prompt, generated, outcome = json.loads(values.split(b":", 3)[-1])
        call = Call(request_id.decode(), bytes.fromhex(fingerprint), start, prompt, generated, outcome, answer)
        return call if _pack_call(call) == (call.request_id, packed) else None
    except (ValueError, TypeError, AttributeError):
        return None


def to_dict(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return a hash that a script has returned as a list of fields and values."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
