"""The store on Redis or Valkey, which several servers share: see `store`."""

from elman_server.sessions.redis.connection import public_name
from elman_server.sessions.redis.store import RedisStore

__all__ = ["RedisStore", "public_name"]
