"""A session as one self-describing file, to be moved to another server: a safetensors file.

Tensors: "tokens" (int32 [position]), and "state.NAME" for each state of the model, with the dtype and shape of the
manifest: the state after `state_position` steps; none if that is 0. Metadata: format, session_id, model, digest,
position, seed, state_position, answers where some can be continued (JSON, see `elman_server.sessions.answers`), and
checksum (CRC-32 of the tensors and the other metadata).
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from elman_server.errors import BundleMismatchError, SessionFileError, shortened
from elman_server.sessions.answers import Answers
from elman_server.sessions.model import ResumePoint, SessionModel
from elman_server.sessions.session import TOKEN_TYPE, Session, TokenLog
from elman_server.sessions.snapshots import Snapshot

_FORMAT = "elman.session.v1"
_STATE = "state."
_TOKENS = "tokens"
_LONGEST_NUMBER = 20  # characters of an integer of 64 bits
_HEADER_BYTES = 8  # of a safetensors file: the length of the JSON that follows


def write_file(session: Session, resume_point: ResumePoint) -> bytes:
    """Return a session as a file, with the state that it continues from."""
    tensors: dict[str, NDArray[Any]] = {_TOKENS: np.array(session.tokens, np.int32)}
    if resume_point.state is not None:
        tensors |= {f"{_STATE}{name}": np.array(value) for name, value in resume_point.state.items()}
    metadata = {
        "format": _FORMAT,
        "session_id": session.session_id,
        "model": session.model,
        "digest": session.digest,
        "position": str(session.position),
        "seed": str(session.seed),
        "state_position": str(resume_point.position),
    }
    if (answers := Answers.of(session)).each:
        metadata["answers"] = answers.pack().decode()
    return save(tensors, {**metadata, "checksum": _checksum(metadata, tensors)})


@dataclass(frozen=True)
class SessionFile:
    """The content of an undamaged file.

    Attributes:
        session_id: id of the session that was exported.
        model: name of its model.
        digest: digest of the model's bundle.
        seed: its seed.
        tokens: int32 [position], its tokens.
        state_position: number of steps that led to the state.
        state: the state, by state input name.
        answers: where its last answers began.
    """

    session_id: str
    model: str
    digest: str
    seed: int
    tokens: NDArray[np.int32]
    state_position: int
    state: dict[str, NDArray[Any]]
    answers: Answers

    def session(self, model: SessionModel, session_id: str, *, longest: int, caller: str, now: float) -> Session:
        """Return a new session with the content of the file.

        Args:
            model: its model.
            session_id: its id.
            longest: largest number of tokens after the state, which the next call must read.
            caller: its owner.
            now: seconds since 1970.

        Raises:
            BundleMismatchError: the file belongs to another bundle.
            SessionFileError: the file does not fit the model.
        """
        if self.digest != model.digest:
            raise BundleMismatchError("content", self.model, self.digest, model.name, model.digest)
        wrong = np.flatnonzero((self.tokens < 0) | (self.tokens >= model.vocabulary_size))
        if wrong.size:
            token = self.tokens[wrong[0]]
            rule = f"the tokens of {model.name!r} are 0 to {model.vocabulary_size - 1}"
            raise SessionFileError(f"token {token} at position {wrong[0]}", rule)
        tokens = TokenLog(array(TOKEN_TYPE, self.tokens.tobytes()))
        if len(tokens) - self.state_position > longest + model.lag:
            behind = len(tokens) - self.state_position
            raise SessionFileError(f"a state that is {behind} tokens behind", f"at most {longest} are allowed")
        if not 0 <= self.state_position <= max(len(tokens) - model.lag, 0):
            rule = f"the session has {len(tokens)} tokens"
            raise SessionFileError(f"a state after {self.state_position} steps", rule)
        snapshots = []
        if self.state_position:
            found = {name: (value.dtype, value.shape) for name, value in self.state.items()}
            if found != model.layout.arrays:
                rule = f"the state of {model.name!r} is {_listed(model.layout.arrays)}"
                raise SessionFileError(f"the state {_listed(found)}", rule)
            snapshots = [Snapshot(self.state_position, model.layout.pack(self.state))]
        session = Session(session_id, model.name, self.digest, self.seed, caller, now, now, tokens, snapshots)
        answers = Answers(tuple(answer for answer in self.answers.each if answer.start <= len(tokens))).to_call()
        session.calls = {answers.request_id: answers} if self.answers.each else {}
        return session


def read_file(content: bytes) -> SessionFile:
    """Read a file.

    Raises:
        SessionFileError: it is not an exported session, or it is damaged.
    """
    try:
        tensors = load(content)
        size = int.from_bytes(content[:_HEADER_BYTES], "little")
        metadata = dict(json.loads(content[_HEADER_BYTES : _HEADER_BYTES + size])["__metadata__"])
        checksum = metadata.pop("checksum")
        if metadata["format"] != _FORMAT:
            raise SessionFileError(f"the format {shortened(metadata['format'])!r}", f"this server reads {_FORMAT!r}")
        tokens = tensors[_TOKENS]
        seed, state_position = _number(metadata, "seed"), _number(metadata, "state_position")
        if not metadata["session_id"]:
            raise SessionFileError("no session_id", "a session has one")
        if checksum != _checksum(metadata, tensors) or tokens.dtype != np.int32 or tokens.ndim != 1:
            raise SessionFileError("a damaged file", "its checksum must match its content")
        state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name != _TOKENS}
        return SessionFile(
            metadata["session_id"],
            metadata["model"],
            metadata["digest"],
            seed,
            tokens,
            state_position,
            state,
            Answers.unpack(metadata["answers"].encode()) if "answers" in metadata else Answers(),
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        got = f"{len(content)} bytes that cannot be read ({shortened(repr(error))})"
        raise SessionFileError(got, "the content must be that of an exported session") from error


def _number(metadata: dict[str, str], name: str) -> int:
    """A number of the metadata, of 64 bits."""
    written = metadata[name]
    value = int(written) if len(written) <= _LONGEST_NUMBER else 2**63
    if not -(2**63) <= value < 2**63:
        raise SessionFileError(f"{name} {shortened(written)}", f"the {name} of a session is an integer of 64 bits")
    return value


def _checksum(metadata: dict[str, str], tensors: dict[str, NDArray[Any]]) -> str:
    checksum = crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        checksum = crc32(f"{name} {value.dtype.str} {value.shape}".encode(), checksum)
        checksum = crc32(value.tobytes(), checksum)
    return f"{checksum:08x}"


def _listed(arrays: Any) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in arrays.items()) or "none"
