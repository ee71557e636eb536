"""Stores of sessions. A new store is one module, an entry in `STORE_KINDS`, and its URL in `settings.store_names`.

interface  what sessions require of a store
memory     in the memory of the server
sqlite     in one SQLite file
redis      in Redis or Valkey, shared by several servers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from elman_server.sessions.stores import memory, redis, sqlite
from elman_server.sessions.stores.interface import Store
from elman_server.settings import Settings, store_scheme

# How to open a store, by the scheme of its URL; "memory" and "file" have no URL.
STORE_KINDS: Mapping[str, Callable[[Settings], Store]] = {
    "memory": memory.open_store,
    "file": sqlite.open_store,
    "redis": redis.open_store,
    "rediss": redis.open_store,
    "unix": redis.open_store,
}


def open_store(settings: Settings) -> Store:
    """Open the store that the settings name.

    Raises:
        StoreOpenError: it cannot be opened.
    """
    return STORE_KINDS[store_scheme(settings.store.get_secret_value())](settings)
