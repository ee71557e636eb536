"""The memory that compiled grammars take, those of all models together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet

from elman_server.errors import ConstraintMemoryError

LIMIT_BYTES = 512 << 20
IDLE_BYTES = 32 << 20  # of those that are kept in case they are asked for again


class Sized(Protocol):
    """A compiled grammar."""

    @property
    def size(self) -> int:
        """About how many bytes it takes, which grows while it is used."""
        ...


class Cache(Protocol):
    """Keeps grammars that may not be in use."""

    def drop_oldest(self) -> bool:
        """Drop the grammar that was used least recently; returns whether there was one."""
        ...

    @property
    def size(self) -> int:
        """The bytes of the grammars that it keeps."""
        ...


class GrammarMemory:
    """Bounds the memory of grammars. Thread-safe.

    Args:
        limit: the largest number of bytes of all grammars.
    """

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._reserved = 0  # for grammars that are being compiled
        self._grammars = WeakSet[Sized]()
        self._caches = WeakSet[Cache]()

    def register(self, cache: Cache) -> None:
        """Let a cache be emptied where memory is needed."""
        self._caches.add(cache)

    def add(self, grammar: Sized) -> None:
        """Count a grammar for as long as something uses it."""
        with self._lock:
            self._grammars.add(grammar)

    @property
    def used(self) -> int:
        """The bytes of all grammars that are in use, kept or being compiled."""
        with self._lock:
            return self._reserved + sum(grammar.size for grammar in self._grammars)

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Make room for a grammar while it is compiled, at the expense of those that are only kept.

        Args:
            size: the bytes that it will take.

        Raises:
            ConstraintMemoryError: those in use take too much.
        """
        while self.used + size > self._limit:
            if not any(cache.drop_oldest() for cache in list(self._caches)):
                raise ConstraintMemoryError(self._limit)
        with self._lock:
            self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size

    def trim(self) -> bool:
        """Drop grammars that are only kept, until few bytes are; returns whether some are still kept."""
        caches = list(self._caches)
        while sum(cache.size for cache in caches) > IDLE_BYTES:
            if not any(cache.drop_oldest() for cache in caches):
                break
        return any(cache.size for cache in caches)
