"""States after the beginnings of prompts that have been read, so that they are not read again.

Token-exact: a state is found for a prompt only if it is that of the prompt's first tokens. Prompts are hashed in
blocks, each hash over the one before, so that a look-up costs a hash a block, however much the cache holds. States
belong to a bundle and to a scope, which is the caller's unless the operator lets callers share. The cache is bounded in
bytes; the least recently used states are evicted first.
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
from elman_server.scheduling import Snapshot

MIN_TOKENS = 64  # Reading fewer costs about as much as looking them up.
SNAPSHOT_STEPS = 256  # approximate number of steps between two states of a long prompt
_BLOCK_TOKENS = 64
_ENTRY_BYTES = 400  # approximate overhead of an entry
_ARRAY_BYTES = 150  # approximate overhead of an array
_HASH_BYTES = 16


@dataclass
class PrefixStatistics:
    """What the cache has saved.

    Attributes:
        lookups: number of prompts that were looked up.
        hits: how many of them had a known beginning.
        saved_steps: number of steps that were not taken because of that.
    """

    lookups: int = 0
    hits: int = 0
    saved_steps: int = 0


@dataclass(frozen=True, slots=True)
class _Entry:
    state: Arrays
    output: NDArray[Any] | None
    chain: bytes
    tail: int

    @property
    def size(self) -> int:
        arrays = [*self.state.values(), *([] if self.output is None else [self.output])]
        return _ENTRY_BYTES + sum(_ARRAY_BYTES + array.nbytes for array in arrays)


class PrefixCache:
    """Keeps states by the tokens that led to them. Lives on one event loop.

    Args:
        limit: bytes that it may take, about; 0 keeps nothing.
        shared: whether callers share what they have read.
    """

    def __init__(self, limit: int, *, shared: bool) -> None:
        self._limit = limit
        self._shared = shared
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the least recently used first
        # By the hash of complete blocks: how many tokens follow in entries, and the number of entries with that many.
        self._tails: dict[bytes, Counter[int]] = {}
        self.size = 0
        self._statistics: dict[str, PrefixStatistics] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def statistics(self, digest: str) -> PrefixStatistics:
        """Return what it has saved the model of a bundle."""
        return self._statistics.setdefault(digest, PrefixStatistics())

    def look_up(
        self,
        digest: str,
        caller: str,
        tokens: NDArray[np.int64],
        *,
        bypass: bool = False,
        output_needed: bool = False,
    ) -> Prefix:
        """Return what is known of a prompt.

        Args:
            digest: digest of the model's bundle.
            caller: identity of the caller.
            tokens: the prompt, int64 [T].
            bypass: whether the cache is neither read nor filled.
            output_needed: whether the caller needs the output after the last token only: then an entry for the full
                prompt serves if it has that output. Otherwise the last token is always read again.
        """
        if bypass or not self._limit or len(tokens) < MIN_TOKENS:
            return Prefix()
        hashes = _Hashes(f"{'' if self._shared else caller}\n{digest}", tokens)
        prefix = _CachedPrefix(self, hashes, len(tokens))
        statistics = self.statistics(digest)
        statistics.lookups += 1
        found = self._find(hashes, len(tokens), output_needed=output_needed)
        if found is not None:
            prefix.position, entry = found
            prefix.state, prefix.output = entry.state, entry.output
            statistics.hits += 1
            statistics.saved_steps += prefix.position
        return prefix

    def _find(self, hashes: _Hashes, length: int, *, output_needed: bool) -> tuple[int, _Entry] | None:
        longest = length if output_needed else length - 1
        for blocks, chain in reversed(list(hashes.chain(longest))):
            for tail in sorted(self._tails.get(chain, ()), reverse=True):
                position = blocks * _BLOCK_TOKENS + tail
                key = hashes.key(position, chain)
                entry = self._entries.get(key)
                if position > longest or entry is None or (position == length and entry.output is None):
                    continue
                self._entries.move_to_end(key)
                return position, entry
        return None

    def keep(self, hashes: _Hashes, position: int, state: Arrays, output: NDArray[Any] | None) -> None:
        """Keep a copy of a state, and the output after it if that will be needed again."""
        if position < MIN_TOKENS:
            return
        *_, (blocks, chain) = hashes.chain(position)
        key = hashes.key(position, chain)
        if key in self._entries and output is None:
            return
        entry = _Entry(_copied(state), output, chain, position - blocks * _BLOCK_TOKENS)
        if entry.size > self._limit:
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
    """What is known of the beginning of a prompt. This one knows nothing, and keeps nothing.

    Attributes:
        position: number of tokens that need not be read.
        state: the state after them; None for the initial state.
        output: the output after them, if that was kept.
        caches: whether states on the way are kept.
    """

    position: int = 0
    state: Arrays | None = None
    output: NDArray[Any] | None = None
    caches: bool = False

    def keep(self, snapshot: Snapshot, output: NDArray[Any] | None = None) -> None:
        """Keep a state on the way, and the output after it."""


class _CachedPrefix(Prefix):
    """A prompt whose beginning may be known, and whose states are kept."""

    caches = True

    def __init__(self, cache: PrefixCache, hashes: _Hashes, length: int) -> None:
        self._cache = cache
        self._hashes = hashes
        self._length = length

    def keep(self, snapshot: Snapshot, output: NDArray[Any] | None = None) -> None:
        if snapshot.position <= self._length:
            self._cache.keep(self._hashes, snapshot.position, snapshot.state, output)


class _Hashes:
    """The hashes of the beginnings of a prompt.

    Args:
        scope: the caller and the bundle for which they are found.
        tokens: the prompt.
    """

    def __init__(self, scope: str, tokens: NDArray[np.int64]) -> None:
        self._tokens = tokens
        self._chain = [_hash(scope.encode())]

    def chain(self, position: int) -> Iterator[tuple[int, bytes]]:
        """Yield the number of complete blocks and their hash, for each number of blocks up to a position."""
        for blocks in range(position // _BLOCK_TOKENS + 1):
            if blocks == len(self._chain):
                block = self._tokens[(blocks - 1) * _BLOCK_TOKENS : blocks * _BLOCK_TOKENS]
                self._chain.append(_hash(self._chain[-1] + block.tobytes()))
            yield blocks, self._chain[blocks]

    def key(self, position: int, chain: bytes) -> bytes:
        """Return the hash of the tokens before a position, whose complete blocks have the hash `chain`."""
        tail = self._tokens[position // _BLOCK_TOKENS * _BLOCK_TOKENS : position]
        return _hash(chain + b"tail" + tail.tobytes())


def _copied(state: Arrays) -> Arrays:
    """Return a read-only copy of a state: every prompt that finds it starts from it."""
    copies = {name: np.array(values) for name, values in state.items()}
    for values in copies.values():
        values.flags.writeable = False
    return copies


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()
