"""Where sessions are, and which call has which.

registry  finds sessions, and gives each to at most one call at a time, on whatever server
claims    which call of this server has which session
leases    which sessions of a shared store this server has
cache     the sessions in memory
"""

from elman_server.sessions.registry.registry import SessionRegistry

__all__ = ["SessionRegistry"]
