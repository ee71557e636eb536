"""The keys in Redis.

    elman:{ID}:header  hash: the session without its tokens, states and calls; its used, position, version, fence,
                       base (no change up to that version can be a repeated one) and token (of the Create that made it)
    elman:{ID}:log     list: tokens in pieces, each "START:CHECKSUM:" and the tokens
    elman:{ID}:states  hash: by position "CHECKSUM:" and the packed state
    elman:{ID}:calls   hash: by request id "END:ENDED:CHECKSUM:", JSON, a newline and the answer
    elman:{ID}:order   list: the request ids of the calls, the latest last
    elman:{ID}:lease   hash: owner, fence, attempt; expires
    elman:{ID}:gone    string: the token of a deleted session; expires
    elman:ids          sorted set of all ids, each with score 0
    elman:used         sorted set of all ids by last use
    elman:caller:NAME  set of the ids of a caller's sessions
    elman:check        string: written to find out whether Redis takes changes; expires

All keys are on one Redis, with or without replicas: in a cluster the sets would be on other nodes than a session.
"""

from __future__ import annotations

PREFIX = "elman:"
CHECK, IDS, USED = f"{PREFIX}check", f"{PREFIX}ids", f"{PREFIX}used"
SESSION_KEYS = ("header", "log", "states", "calls", "order", "lease", "gone")


def key_of(session_id: str, name: str) -> str:
    """Return one of the SESSION_KEYS of a session."""
    return f"{PREFIX}{{{session_id}}}:{name}"


def caller_key(caller: str) -> str:
    """Return the key of the set of a caller's sessions."""
    return f"{PREFIX}caller:{caller}"
