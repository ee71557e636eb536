"""Sessions: state that outlives its calls. Between the rpc room and scheduling.

Sessions (who has which, in memory or in the store) -> Run (a generation under way) -> scheduling
                                                    -> Journal -> Store (memory, a SQLite file)
"""

from elman_server.sessions.calls import GenerationRequest, Listening, SessionReading, Target
from elman_server.sessions.file import SessionFile, read_file
from elman_server.sessions.reading import SessionModel
from elman_server.sessions.session import TOKEN_TYPE, Session, StateLayout
from elman_server.sessions.sessions import SessionOptions, Sessions
from elman_server.sessions.sqlite import SqliteStore
from elman_server.sessions.store import MemoryStore, Store, Summary
from elman_server.settings import Fsync

__all__ = [
    "TOKEN_TYPE",
    "Fsync",
    "GenerationRequest",
    "Listening",
    "MemoryStore",
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
