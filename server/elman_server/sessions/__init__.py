"""Sessions: state that outlives its calls. Between the use cases and scheduling.

sessions           creates, shows, copies, rewinds, exports and deletes sessions
  calls            continue them: generations and readings, each exactly once
  registry         where sessions are, and which call has which
  quota, expiry    how many sessions a caller may have; when unused ones are deleted
active_generation  a generation while it runs
journal            writes changes into the store
stores             memory, SQLite, Redis
session            a session as a value; snapshots, changes, state_layout: its parts and how it changes
model              what sessions need of a model
file               an exported session
"""

from elman_server.sessions.answers import AnswerContext
from elman_server.sessions.calls import SessionGeneration, SessionReading, Subscription, Target
from elman_server.sessions.file import SessionFile, read_file, write_file
from elman_server.sessions.model import SessionModel
from elman_server.sessions.session import TOKEN_BYTES, TOKEN_TYPE, Session
from elman_server.sessions.sessions import SessionOptions, Sessions
from elman_server.sessions.state_layout import StateLayout
from elman_server.sessions.stores import open_store
from elman_server.sessions.stores.interface import Store, Summary

__all__ = [
    "TOKEN_BYTES",
    "TOKEN_TYPE",
    "AnswerContext",
    "Session",
    "SessionFile",
    "SessionGeneration",
    "SessionModel",
    "SessionOptions",
    "SessionReading",
    "Sessions",
    "StateLayout",
    "Store",
    "Subscription",
    "Summary",
    "Target",
    "open_store",
    "read_file",
    "write_file",
]
