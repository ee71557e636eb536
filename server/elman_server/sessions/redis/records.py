"""What sessions look like in Redis: packed under checksums, and read again as far as they are sound."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from redis.exceptions import ResponseError

from elman_server.sessions.redis.connection import raise_first
from elman_server.sessions.redis.scripts import caller_key
from elman_server.sessions.session import TOKEN_BYTES, TOKEN_TYPE, Advance, Call, Session, Snapshot
from elman_server.sessions.store import Summary

_PIECE = 1024  # tokens; a longer prompt is several pieces


class Held:
    """What Redis holds of a session.

    Attributes:
        session: as far as it is sound.
        position: where the header says that it ends.
        pieces: how many of the log are sound.
        sound: whether all of its tokens are.

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
        self.session = session = _heading(header)
        if session.session_id != session_id or header[b"checksum"].decode() != _checksum(session):
            raise ValueError("the header's checksum does not match")
        self.position = int(header[b"position"])
        session.version = int(header[b"version"])
        session.tokens, self.pieces = _sound_tokens(log)
        self.sound = self.pieces == len(log) and session.position == self.position
        del session.tokens[self.position :]
        snapshots = [_unpacked_snapshot(*entry) for entry in states.items()]
        session.snapshots = sorted(
            (known for known in snapshots if known is not None and known.position <= session.position),
            key=lambda known: known.position,
        )
        for request_id in order:
            call = _unpacked_call(request_id, calls.get(request_id, b""))
            if call is not None and call.end <= session.position:
                session.calls[call.request_id] = call


def creation(session: Session) -> list[object]:
    """What CREATE is given beside the token."""
    header = {
        "id": session.session_id,
        "model": session.model,
        "digest": session.digest,
        "seed": session.seed,
        "caller": session.caller,
        "created": repr(float(session.created)),
        "checksum": _checksum(session),
        "used": repr(float(session.used)),
        "position": session.position,
        "version": session.version,
        "base": session.version,
    }
    return [
        session.session_id,
        caller_key(session.caller),
        *_counted(list(header.items())),
        *_counted([_packed_snapshot(snapshot) for snapshot in session.snapshots]),
        *_counted([_packed_call(call) for call in session.calls.values()]),
        *_pieces(0, session.tokens),
    ]


def progress(change: Advance) -> list[object]:
    """What ADVANCE is given beside the standing."""
    snapshots = [] if change.snapshot is None else [change.snapshot]
    return [
        change.session_id,
        change.start,
        change.start + len(change.tokens),
        repr(float(change.used)),
        *_counted([(position,) for position in change.dropped] if snapshots else []),
        *_counted([_packed_snapshot(snapshot) for snapshot in snapshots]),
        *_counted([] if change.call is None else [_packed_call(change.call)]),
        *_pieces(change.start, change.tokens),
    ]


def _counted(entries: Sequence[tuple[object, ...]]) -> list[object]:
    return [len(entries), *(part for entry in entries for part in entry)]


def _heading(header: Mapping[bytes, bytes]) -> Session:
    said = {name.decode(): value.decode() for name, value in header.items()}
    return Session(
        said["id"],
        said["model"],
        said["digest"],
        int(said["seed"]),
        said["caller"],
        float(said["created"]),
        float(said["used"]),
    )


def summary_of(header: Any) -> Summary | None:
    """What a list says about a session; None if there is no such session, or nothing can be said."""
    try:
        raise_first([header])
        session, position = _heading(header), int(header[b"position"])
    except (ResponseError, LookupError, ValueError):
        return None
    return Summary(
        session.session_id, session.model, session.digest, session.seed, session.created, session.used, position
    )


def _checksum(session: Session) -> str:
    """Over what never changes about a session."""
    fixed = (session.session_id, session.model, session.digest, session.seed, session.caller, float(session.created))
    return f"{crc32(repr(fixed).encode()):08x}"


def _pieces(start: int, tokens: array[int]) -> list[bytes]:
    return [_piece(start + at, tokens[at : at + _PIECE].tobytes()) for at in range(0, len(tokens), _PIECE)]


def _piece(start: int, tokens: bytes) -> bytes:
    """Lua makes these, too, where a session is taken back to the middle of one."""
    checksum = hashlib.sha1(b"%d:%b" % (start, tokens)).hexdigest()[:8]
    return b"%d:%b:%b" % (start, checksum.encode(), tokens)


def _sound_tokens(log: Sequence[bytes]) -> tuple[array[int], int]:
    """The tokens before the first piece that is missing or damaged, and how many pieces they are."""
    tokens = array(TOKEN_TYPE)
    for number, piece in enumerate(log):
        part = piece.split(b":", 2)[-1]
        if piece != _piece(len(tokens), part) or len(part) % TOKEN_BYTES:
            return tokens, number
        tokens.frombytes(part)
    return tokens, len(log)


def _packed_snapshot(snapshot: Snapshot) -> tuple[object, ...]:
    return snapshot.position, b"%08x:%b" % (crc32(snapshot.state, snapshot.position), snapshot.state)


def _unpacked_snapshot(position: bytes, packed: bytes) -> Snapshot | None:
    if not position.isdigit():
        return None
    snapshot = Snapshot(int(position), packed.partition(b":")[2])
    return snapshot if _packed_snapshot(snapshot) == (int(position), packed) else None


def _packed_call(call: Call) -> tuple[object, ...]:
    said = [call.fingerprint.hex(), call.start, call.prompt_count, call.generated_count, call.outcome]
    prefix = b"%d:%d:" % (call.end, bool(call.outcome))
    content = json.dumps(said).encode() + b"\n" + call.answer
    checksum = crc32(content, crc32(prefix, crc32(call.request_id.encode())))
    return call.request_id, b"%b%08x:%b" % (prefix, checksum, content)


def _unpacked_call(request_id: bytes, packed: bytes) -> Call | None:
    said, _, answer = packed.partition(b"\n")
    try:
        fingerprint, start, prompt, generated, outcome = json.loads(said.split(b":", 3)[-1])
        call = Call(request_id.decode(), bytes.fromhex(fingerprint), start, prompt, generated, outcome, answer)
        return call if _packed_call(call) == (call.request_id, packed) else None
    except (ValueError, TypeError, AttributeError):
        return None


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash, as Lua gives it back."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
