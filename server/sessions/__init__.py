"""Sessions: state that outlives its calls. Between the rpc room and scheduling.

Sessions (who has which, in memory or in the store) -> Run (a generation under way) -> scheduling
                                                    -> Journal -> Store (memory, a SQLite file)
"""

from server.sessions.calls import GenerationRequest, Listening, SessionReading, Target
from server.sessions.file import SessionFile, read_file
from server.sessions.prefixes import Prefix, PrefixCache
from server.sessions.reading import SessionModel
from server.sessions.session import TOKEN_TYPE, Session, StateLayout
from server.sessions.sessions import SessionOptions, Sessions
from server.sessions.sqlite import Fsync, SqliteStore
from server.sessions.store import MemoryStore, Store, Summary

__all__ = [
    "TOKEN_TYPE",
    "Fsync",
    "GenerationRequest",
    "Listening",
    "MemoryStore",
    "Prefix",
    "PrefixCache",
    "Session",
    "SessionFile",
    "SessionModel",
    "SessionOptions",
    "SessionReading",
    "Sessions",
    "SqliteStore",
    "StateLayout",
    "Store",
    "Summary",
    "Target",
    "read_file",
]
