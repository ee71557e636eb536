"""A session as one self-describing file, to be carried to another server: a safetensors file.

Tensors: "tokens" (int32 [position]) and "state.NAME" for each of the model's states, of the manifest's dtype and shape:
the state after `state_position` steps; none if that is 0. Metadata: format, session_id, model, digest, position, seed,
state_position, checksum (CRC-32 of the tokens, the states and what the other metadata say).
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

from elman_server.sessions.errors import BundleMismatchError, SessionFileError
from elman_server.sessions.reading import Beginning, SessionModel
from elman_server.sessions.session import TOKEN_TYPE, Session, Snapshot

_FORMAT = "elman.session.v1"
_STATE = "state."
_TOKENS = "tokens"
_HEADER_BYTES = 8  # of a safetensors file: the length of the JSON that follows


def write_file(session: Session, begin: Beginning, model: SessionModel) -> bytes:
    """A session as a file, with the latest state from which it goes on."""
    tensors: dict[str, NDArray[Any]] = {_TOKENS: np.array(session.tokens, np.int32)}
    if begin.state is not None:
        tensors |= {f"{_STATE}{name}": np.array(value) for name, value in begin.state.items()}
    metadata = {
        "format": _FORMAT,
        "session_id": session.session_id,
        "model": session.model,
        "digest": session.digest,
        "position": str(session.position),
        "seed": str(session.seed),
        "state_position": str(begin.position),
    }
    return save(tensors, {**metadata, "checksum": _checksum(metadata, tensors)})


@dataclass(frozen=True)
class SessionFile:
    """What a file says; it has been found to be sound.

    Attributes:
        session_id: the id that the session had.
        model: the model's name.
        digest: of the model's bundle.
        seed: the session's.
        tokens: int32 [position].
        state_position: the number of steps that have led to the state.
        state: by state input name.
    """

    session_id: str
    model: str
    digest: str
    seed: int
    tokens: NDArray[np.int32]
    state_position: int
    state: dict[str, NDArray[Any]]

    def session(self, model: SessionModel, session_id: str, *, longest: int, caller: str, now: float) -> Session:
        """The session that it holds.

        Args:
            model: whose it is.
            session_id: the id it gets.
            longest: how many tokens the next call may have to read.
            caller: whose it becomes.
            now: seconds since 1970.

        Raises:
            BundleMismatchError: it is one of another bundle.
            SessionFileError: its state is not one of this model.
        """
        if self.digest != model.digest:
            raise BundleMismatchError(
                f"the session was exported from {self.model!r} {self.digest}, this server has {model.name!r} "
                f"{model.digest}: a state means nothing to another bundle"
            )
        wrong = np.flatnonzero((self.tokens < 0) | (self.tokens >= model.vocabulary_size))
        if wrong.size:
            token = self.tokens[wrong[0]]
            raise SessionFileError(
                f"its token {wrong[0]} is {token}, but those of {model.name!r} are 0 to {model.vocabulary_size - 1}"
            )
        tokens = array(TOKEN_TYPE, self.tokens.tobytes())
        if len(tokens) - self.state_position > longest + model.lag:
            raise SessionFileError(
                f"its state is {len(tokens) - self.state_position} tokens behind, the limit is {longest}"
            )
        if not 0 <= self.state_position <= max(len(tokens) - model.lag, 0):
            raise SessionFileError(f"its state is of {self.state_position} steps, but it has {len(tokens)} tokens")
        snapshots = []
        if self.state_position:
            found = {name: (value.dtype, value.shape) for name, value in self.state.items()}
            if found != model.layout.arrays:
                raise SessionFileError(
                    f"its state is {_listed(found)}, but {model.name!r} has {_listed(model.layout.arrays)}"
                )
            snapshots = [Snapshot(self.state_position, model.layout.pack(self.state))]
        return Session(session_id, model.name, self.digest, self.seed, caller, now, now, tokens, snapshots)


def read_file(content: bytes) -> SessionFile:
    """Read a file.

    Raises:
        SessionFileError: it is none, or a damaged one.
    """
    try:
        tensors = load(content)
        size = int.from_bytes(content[:_HEADER_BYTES], "little")
        metadata = dict(json.loads(content[_HEADER_BYTES : _HEADER_BYTES + size])["__metadata__"])
        checksum = metadata.pop("checksum")
        if metadata["format"] != _FORMAT:
            raise SessionFileError(f"its format is {metadata['format']!r}, this server reads {_FORMAT!r}")
        tokens = tensors[_TOKENS]
        seed = int(metadata["seed"])
        if not -(2**63) <= seed < 2**63 or not metadata["session_id"]:
            raise SessionFileError("its seed is no 64-bit integer, or it has no session_id")
        if checksum != _checksum(metadata, tensors) or tokens.dtype != np.int32 or tokens.ndim != 1:
            raise SessionFileError("it is damaged: its checksum does not match")
        state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name != _TOKENS}
        return SessionFile(
            metadata["session_id"],
            metadata["model"],
            metadata["digest"],
            seed,
            tokens,
            int(metadata["state_position"]),
            state,
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise SessionFileError(f"it is no exported session, or a damaged one: {error!r}") from error


def _checksum(metadata: dict[str, str], tensors: dict[str, NDArray[Any]]) -> str:
    checksum = crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        checksum = crc32(f"{name} {value.dtype.str} {value.shape}".encode(), checksum)
        checksum = crc32(value.tobytes(), checksum)
    return f"{checksum:08x}"


def _listed(arrays: Any) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in arrays.items()) or "none"
