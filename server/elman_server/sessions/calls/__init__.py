"""Calls that continue sessions, each exactly once: a repeated call is answered from the record of the first attempt.

registry (claims the session) -> scheduling -> journal (the store has it) -> the session in memory

generation       calls that generate
session_answers  where the answer of such a call begins
reading          calls that read tokens, for the outputs of the model
forced_steps     the steps of a reading
records          the calls that a session remembers
"""

from elman_server.sessions.calls.generation import SessionGenerator, Subscription
from elman_server.sessions.calls.reading import SessionReader, SessionReading
from elman_server.sessions.calls.records import Target
from elman_server.sessions.calls.session_answers import SessionGeneration

__all__ = ["SessionGeneration", "SessionGenerator", "SessionReader", "SessionReading", "Subscription", "Target"]
