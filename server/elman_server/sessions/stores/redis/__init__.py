"""The store on Redis or Valkey, which several servers share: when one of them ends, another continues its sessions.

    store       the `Store`
    scripts     the Lua scripts, one per operation; `lua` has what they share
    records     what is stored of a session, packed under checksums
    keys        the keys
    connection  commands to Redis, repeated while it is away

A change is one Lua script, so it is made completely or not at all; the scripts of many changes go in one pipeline. An
answer can be lost and the pipeline be sent again, and the first copy may even arrive later: a change that was made
already is recognised by its version and not made twice.

A lease, a key that expires, says which server may advance a session. Its fence, a number that grows with every lease,
is stored with the session: a change with an older fence is refused, however late it arrives. Fences are times, so that
they grow even if Redis has lost the latest one, or the session is a new one with an old id.
"""

from elman_server.sessions.stores.interface import Store
from elman_server.sessions.stores.redis.store import RedisStore
from elman_server.settings import Settings

__all__ = ["RedisStore", "open_store"]


def open_store(settings: Settings) -> Store:
    """Connect to the Redis that the settings name; see `STORE_KINDS`.

    Raises:
        StoreOpenError: it cannot be used.
    """
    return RedisStore(settings.store.get_secret_value())
