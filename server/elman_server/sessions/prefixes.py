"""States after prompts that have been read before, so that nobody reads them again.

Token-exact: a state is found for a prompt only if it is that of the prompt's very first tokens. Prompts are hashed in
blocks, each hash over the one before, so that looking one up costs a hash a block, however much the cache holds. States
belong to a bundle and to a scope, which is the caller's unless the operator lets callers share. Bounded in bytes; the
least recently used leave first.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_server.engine import Arrays
from elman_server.scheduling import Event, Receiver, Snapshot
from elman_server.sessions.reading import SessionModel

SHORTEST = 64  # tokens; to read fewer costs about as much as to look them up
INTERVAL = 256  # steps between two states of a long prompt, about
_BLOCK = 64
_ENTRY_BYTES = 400  # about what an entry takes beside its state
_HASH_BYTES = 16


@dataclass
class PrefixStatistics:
    """What the cache has been worth.

    Attributes:
        lookups: how many prompts were looked up.
        hits: how many of them had a prefix that was known.
        saved_steps: how many steps that has saved.
    """

    lookups: int = 0
    hits: int = 0
    saved_steps: int = 0


@dataclass(frozen=True, slots=True)
class _Entry:
    state: bytes
    output: NDArray[Any] | None
    chain: bytes
    tail: int

    @property
    def size(self) -> int:
        return _ENTRY_BYTES + len(self.state) + (0 if self.output is None else self.output.nbytes)


class PrefixCache:
    """Keeps states by the tokens that led to them. Lives on one event loop.

    Args:
        limit: bytes that it may take, about; 0: it keeps nothing.
        shared: whether callers share what they have read.
    """

    def __init__(self, limit: int, *, shared: bool) -> None:
        self._limit = limit
        self._shared = shared
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the least recently used first
        # By the hash of whole blocks: how many tokens follow in an entry, and in how many entries so many do.
        self._tails: dict[bytes, Counter[int]] = {}
        self.size = 0
        self._statistics: dict[str, PrefixStatistics] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def statistics(self, digest: str) -> PrefixStatistics:
        """What it has been worth to a bundle."""
        return self._statistics.setdefault(digest, PrefixStatistics())

    def look_up(self, model: SessionModel, caller: str, tokens: NDArray[np.int64], *, output_wanted: bool) -> Prefix:
        """What is known of a prompt.

        Args:
            model: whose states.
            caller: who asks.
            tokens: the prompt.
            output_wanted: whether the output after the last token is wanted: the whole prompt is known then only if
                that is. Else the last token is read in any case: what the model chooses after it is wanted.
        """
        hashes = _Hashes(f"{'' if self._shared else caller}\n{model.digest}", tokens)
        prefix = Prefix(self, model, hashes, len(tokens))
        if self._limit and len(tokens) >= SHORTEST:
            statistics = self.statistics(model.digest)
            statistics.lookups += 1
            found = self._find(hashes, len(tokens), output_wanted=output_wanted)
            if found is not None:
                prefix.position, entry = found
                prefix.state, prefix.output = model.layout.unpack(entry.state), entry.output
                statistics.hits += 1
                statistics.saved_steps += prefix.position
        return prefix

    def _find(self, hashes: _Hashes, length: int, *, output_wanted: bool) -> tuple[int, _Entry] | None:
        longest = length if output_wanted else length - 1
        for blocks, chain in reversed(list(hashes.chain(longest))):
            for tail in sorted(self._tails.get(chain, ()), reverse=True):
                position = blocks * _BLOCK + tail
                key = hashes.key(position, chain)
                entry = self._entries.get(key)
                if position > longest or entry is None or (position == length and entry.output is None):
                    continue
                self._entries.move_to_end(key)
                return position, entry
        return None

    def keep(self, hashes: _Hashes, position: int, state: bytes, output: NDArray[Any] | None) -> None:
        """Keep a state, and what the model has shown with it, if that is wanted again."""
        if not self._limit or position < SHORTEST:
            return
        *_, (blocks, chain) = hashes.chain(position)
        key = hashes.key(position, chain)
        entry = _Entry(state, output, chain, position - blocks * _BLOCK)
        known = self._entries.get(key)
        if entry.size > self._limit or (known is not None and output is None):
            return
        self._drop(key)
        self._entries[key] = entry
        self.size += entry.size
        self._tails.setdefault(chain, Counter())[entry.tail] += 1
        while self.size > self._limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.size -= entry.size
        tails = self._tails[entry.chain]
        tails[entry.tail] -= 1
        if not tails[entry.tail]:
            del tails[entry.tail]
        if not tails:
            del self._tails[entry.chain]


class Prefix:
    """One prompt, and what is known of its beginning.

    Attributes:
        position: how many tokens need not be read; 0 if nothing is known.
        state: the state after them; None if nothing is known.
        output: what the model showed after them, if that was kept.
    """

    def __init__(self, cache: PrefixCache, model: SessionModel, hashes: _Hashes, length: int) -> None:
        self._cache = cache
        self._model = model
        self._hashes = hashes
        self._length = length
        self.position = 0
        self.state: Arrays | None = None
        self.output: NDArray[Any] | None = None

    def keep(self, snapshot: Snapshot, output: NDArray[Any] | None = None) -> None:
        """Keep a state on the way."""
        if snapshot.position <= self._length:
            self._cache.keep(self._hashes, snapshot.position, self._model.layout.pack(snapshot.state), output)

    def receiver(self, receiver: Receiver) -> Receiver:
        """Takes the snapshots out of what a receiver is told."""
        return _Keeping(self, receiver)


class _Keeping:
    def __init__(self, prefix: Prefix, receiver: Receiver) -> None:
        self._prefix = prefix
        self._receiver = receiver

    def receive(self, event: Event) -> None:
        if isinstance(event, Snapshot):
            self._prefix.keep(event)
        else:
            self._receiver.receive(event)


class _Hashes:
    """The hashes of a prompt's beginnings.

    Args:
        scope: who may find it; of what model.
        tokens: the prompt.
    """

    def __init__(self, scope: str, tokens: NDArray[np.int64]) -> None:
        self._tokens = tokens
        self._chain = [_hash(scope.encode())]

    def chain(self, position: int) -> Iterator[tuple[int, bytes]]:
        """The number of whole blocks and their hash, for each number of them up to a position."""
        for blocks in range(position // _BLOCK + 1):
            if blocks == len(self._chain):
                block = self._tokens[(blocks - 1) * _BLOCK : blocks * _BLOCK]
                self._chain.append(_hash(self._chain[-1] + block.tobytes()))
            yield blocks, self._chain[blocks]

    def key(self, position: int, chain: bytes) -> bytes:
        """Of the tokens before a position, whose whole blocks have the hash `chain`."""
        tail = self._tokens[position // _BLOCK * _BLOCK : position]
        return _hash(chain + b"tail" + tail.tobytes())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()
